"""Makes docs/conformance.md and the verdicts that the test expects.

python -m tests.conformance.make [FOLDER]

FOLDER holds more files, too many for this repository; their totals are told too.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.conformance.runner import cases, judge_all, verdict

ROOT = Path(__file__).parents[2]
FILES = ROOT / "tests" / "data" / "conformance"
VERDICTS = Path(__file__).parent / "verdicts.json"
DOCS = ROOT / "docs" / "conformance.md"
_HEAD = (Path(__file__).parent / "head.md").read_text()


def main() -> None:
    """Judge all files, and write what was found."""
    found = dict(judge_all(FILES, cases(FILES)))
    verdicts = {name: verdict(answer) for name, answer in found.items()}
    VERDICTS.write_text(json.dumps(verdicts, indent=1, sort_keys=True) + "\n")
    lines = [
        _HEAD.rstrip(),
        "",
        "## Totals",
        "",
        _totals("in this repository", verdicts),
    ]
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        more = {n: verdict(a) for n, a in judge_all(folder, cases(folder))}
        lines += [_totals("of the whole collections they were chosen from", more)]
        lines += [f"  - {n}: {v}" for n, v in more.items() if v.startswith("FAULT")]
    day = datetime.datetime.now(datetime.UTC).date()
    lines += ["", f"Made on {day} with pyarrow {pa.__version__}.", "", "## Files", ""]
    lines += ["| file | what it holds | verdict | said |", "|---|---|---|---|"]
    lines += [_row(name, found[name], verdicts[name]) for name in sorted(found)]
    DOCS.write_text("\n".join(lines) + "\n")


def _totals(where: str, verdicts: dict[str, str]) -> str:
    counts = Counter(text.partition(" in ")[0] for text in verdicts.values())
    told = ", ".join(f"{n} {text}" for text, n in counts.most_common())
    files = {name.partition(" (key")[0] for name in verdicts}
    return f"- {len(files)} files {where}, {len(verdicts)} readings: {told}."


def _row(name: str, answer: dict[str, Any], text: str) -> str:
    said = answer.get("text", "")
    file = name.partition(" (key")[0]
    # The folder says nothing, and is another one elsewhere.
    said = said.replace(f"{FILES}/{file}", "...")
    parts = (
        name,
        answer.get("holds", "") or "nothing that pyarrow can read",
        text,
        said,
    )
    return "| " + " | ".join(_cell(part) for part in parts) + " |"


def _cell(text: str) -> str:
    short = text if len(text) < 200 else text[:197] + "..."
    return short.replace("|", "\\|").replace("\n", " ").replace("<", "\\<")


if __name__ == "__main__":
    main()
