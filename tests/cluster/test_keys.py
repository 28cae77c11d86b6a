"""Folders with keys: private, removed with their owner, and never while it lives."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import keys
from cluster.keys import KeyFolder, is_abandoned
from tests.cluster.conftest import WaitUntil

_HERE = keys._this_process()


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait(180)
    return process.pid


@pytest.fixture
def zombie() -> Iterator[int]:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait(180)


@pytest.mark.parametrize(
    ("owner", "silent_s", "gone"),
    [
        (_HERE, 1e6, False),  # stopped for long, but it lives
        (_HERE | {"began": "1"}, 0.0, True),  # another process of the same id
        (_HERE | {"place": ["other", "boot", "pid:[1]"]}, 3000.0, False),
        (_HERE | {"place": ["other", "boot", "pid:[1]"]}, 3700.0, True),
        (None, 3000.0, False),
        (None, 3700.0, True),
        ({"place": _HERE["place"], "pid": "x"}, 3000.0, False),
        ({"place": _HERE["place"]}, 3700.0, True),
    ],
)
def test_who_is_gone(owner: dict[str, Any] | None, silent_s: float, gone: bool) -> None:
    assert is_abandoned(owner, _HERE, silent_s=silent_s) is gone


def test_an_ended_process_is_gone_at_once(dead: int, zombie: int) -> None:
    assert is_abandoned(_HERE | {"pid": dead}, _HERE, silent_s=0.0)
    began = keys._state(zombie)[1]
    assert is_abandoned(_HERE | {"pid": zombie, "began": began}, _HERE, silent_s=0.0)


def test_only_abandoned_folders_are_removed(tmp_path: Path, dead: int) -> None:
    for name, owner in {
        "dask-cluster-dead": _HERE | {"pid": dead},
        "dask-cluster-far": _HERE | {"place": "far", "pid": dead},
        "someone-elses": _HERE | {"pid": dead},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "owner.json").write_text(json.dumps(owner))
    (tmp_path / "dask-cluster-half").mkdir()
    (tmp_path / "dask-cluster-half" / "owner.json").write_text("[")
    (tmp_path / "dask-cluster-file").write_text("")
    os.utime(tmp_path / "dask-cluster-far", (5, 5))
    first = KeyFolder(tmp_path, {"key.pem": "secret"})
    second = KeyFolder(tmp_path, {"key.pem": "secret"})
    left = {"someone-elses", "dask-cluster-half", "dask-cluster-file"}
    try:
        assert set(os.listdir(tmp_path)) == left | {first.path.name, second.path.name}
        for path, mode in ((first.path, 0o700), (first.path / "key.pem", 0o600)):
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        for folder in (first, second, second):
            folder.remove()
    assert set(os.listdir(tmp_path)) == left


def test_a_beat_makes_the_folder_younger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = KeyFolder(tmp_path, {})
    try:
        os.utime(folder.path, (5, 5))
        folder.beat()
        assert folder.path.stat().st_mtime == 5  # once a minute is enough
        monkeypatch.setattr(keys, "_BEAT_S", 0.0)
        folder.beat()
        assert folder.path.stat().st_mtime > 5
    finally:
        folder.remove()


@pytest.mark.parametrize("and_its_remover", [False, True])
def test_a_killed_owner_leaves_nothing(
    tmp_path: Path, wait_until: WaitUntil, *, and_its_remover: bool
) -> None:
    script = (
        "import sys\n"
        "from cluster.keys import KeyFolder\n"
        "folder = KeyFolder(sys.argv[1], {'key.pem': 'secret'})\n"
        "print(folder._remover.pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        remover = psutil.Process(int(owner.stdout.readline()))
        assert len(os.listdir(tmp_path)) == 1
        if and_its_remover:
            remover.kill()
        owner.send_signal(signal.SIGKILL)
        owner.wait(180)
    if and_its_remover:
        assert len(os.listdir(tmp_path)) == 1
        KeyFolder(tmp_path, {}).remove()
    wait_until(lambda: os.listdir(tmp_path) == [], "an empty folder")
    wait_until(lambda: not remover.is_running(), "the end of the remover")
