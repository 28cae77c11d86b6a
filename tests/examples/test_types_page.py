"""The examples of docs/types.md print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "types.md"


def test_the_examples_print_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 2
    script = "\n".join(blocks)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, str(PAGE), "exec"), {})
    wanted = re.findall(r"print\(.*\)  # (.*)", script)
    assert len(wanted) == script.count("print(") == 6
    assert capsys.readouterr().out.splitlines() == wanted
