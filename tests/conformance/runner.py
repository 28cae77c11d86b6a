"""Runs the child over many files; one that dies or hangs is told, and another goes on."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.conformance.keys import key_name

MEMORY_BYTES = 6 << 30
DEADLINE_S = 120.0


def cases(folder: Path) -> list[tuple[str, str]]:
    """Return each Parquet-like file below a folder, and the keys to read it with."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        fuzz = "fuzz" in name or path.name.startswith("crash-")
        if not (path.suffix in (".parquet", ".parq", ".encrypted") or fuzz):
            continue
        if ".csv" in name or "/csv/" in name:
            continue
        found.append((name, ""))
        if key_name(name):
            found.append((name, key_name(name)))
        if path.suffix == ".encrypted":
            found.append((name, "wrong"))
    return found


def judge_all(
    folder: Path, asked: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what came of each file, named with its keys."""
    child: subprocess.Popen[str] | None = None
    try:
        for name, keys in asked:
            if child is None:
                child = _start()
            assert child.stdin is not None
            child.stdin.write(json.dumps([str(folder / name), keys]) + "\n")
            child.stdin.flush()
            line = _line(child)
            if line is None or not line:
                how = "hang" if line is None else "crash"
                _end(child)
                child = None
                answer: dict[str, Any] = {"ours": how, "text": ""}
            else:
                answer = json.loads(line)
            yield f"{name} (key: {keys})" if keys else name, answer
    finally:
        if child is not None:
            _end(child)


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.conformance.child", str(MEMORY_BYTES)]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert _line(child) == "ready\n"
    return child


def _line(child: subprocess.Popen[str]) -> str | None:
    """Return the next line, "" where the child died, or None after the deadline."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        if not selector.select(DEADLINE_S):
            return None
    return child.stdout.readline()


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def verdict(answer: dict[str, Any]) -> str:
    """Return what came of a file in a few words."""
    if answer["ours"] == "refused":
        return f"refused: {answer['error']}"
    if answer["ours"] != "read":
        return f"FAULT: {answer['ours']}"
    if answer["short"]:
        return "FAULT: fewer rows"
    if "differ" not in answer:
        return "FAULT: read where pyarrow fails"
    if answer["differ"]:
        return f"FAULT: other values in {', '.join(answer['differ'])}"
    return "read, equal"
