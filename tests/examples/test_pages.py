"""The examples of pages in docs/ print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "num_blocks", "num_prints"), [("types.md", 4, 8), ("transforms.md", 3, 3)]
)
def test_the_examples_print_what_they_say(
    page: str,
    num_blocks: int,
    num_prints: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = DOCS / page
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.S)
    assert len(blocks) == num_blocks
    script = "\n".join(blocks)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, str(path), "exec"), {})
    wanted = re.findall(r"print\(.*\)  # (.*)", script)
    assert len(wanted) == script.count("print(") == num_prints
    assert capsys.readouterr().out.splitlines() == wanted
