"""Files of other writers are read with pyarrow's values, or refused in words."""

from __future__ import annotations

import json

from tests.conformance.make import FILES, VERDICTS
from tests.conformance.runner import cases, judge_all, verdict


def test_each_file_is_read_with_pyarrows_values_or_refused_by_name() -> None:
    expected = json.loads(VERDICTS.read_text())
    found = {}
    for name, answer in judge_all(FILES, cases(FILES)):
        found[name] = verdict(answer)
        if answer["ours"] == "refused":
            file = name.partition(" (key")[0]
            assert f"{FILES}/{file}" in answer["text"]
    assert found == expected
    assert len(found) > 100
    assert not [name for name, text in found.items() if "FAULT" in text]
