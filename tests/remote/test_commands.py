"""`dask loader` over s3://: the same tries as datasets, and no secret in what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dask_loader.cli import main
from tests.remote.conftest import SECRET
from tests.remote.servers import FaultProxy
from tests.remote.test_s3 import NUM_ROWS


def run(command: str, *arguments: str, options: dict[str, Any]) -> Result:
    given = ["--storage-options", json.dumps(options), "--batch-size", "400"]
    result = CliRunner().invoke(main, [command, *arguments, *given])
    assert SECRET not in result.output + result.stderr + repr(result.exception)
    return result


@pytest.mark.parametrize(
    "fault", ["503", pytest.param("reset", marks=pytest.mark.slow)]
)
def test_a_flaky_store_is_verified_to_give_each_row_once(
    data: str, s3_options: dict[str, Any], line: FaultProxy, fault: str
) -> None:
    line.fault, line.share = fault, 0.3
    filters = json.dumps([["b", "<", 7]])  # the inventory reads a column, not footers
    result = run("verify", data, "--filters", filters, "--json", options=s3_options)
    assert result.exit_code == 0, result.output
    assert line.faults[fault] > 3
    assert json.loads(result.stdout)["rows"] == NUM_ROWS


def test_a_plan_over_a_flaky_store_is_printed(
    data: str, s3_options: dict[str, Any], line: FaultProxy
) -> None:
    line.fault, line.share = "503", 0.3
    result = run("plan", data, "--json", options=s3_options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == NUM_ROWS


@pytest.mark.parametrize("command", ["plan", "verify"])
@pytest.mark.parametrize(
    ("fault", "text"), [("503", "8 tries in"), ("403", "the store denies access")]
)
def test_a_store_that_fails_is_one_line_on_stderr(
    data: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    command: str,
    fault: str,
    text: str,
) -> None:
    line.fault = fault
    result = run(command, data, options=s3_options)
    assert result.exit_code == 1
    (said,) = result.stderr.splitlines()
    assert said.startswith("Error: cannot look at 'bucket/data")
    assert text in said


def test_options_may_lie_in_a_file(
    data: str, s3_options: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "options.json"
    for content, code in ((json.dumps(s3_options), 0), (f'["{SECRET}"]', 2)):
        file.write_text(content)
        given = ["--storage-options", f"@{file}", "--batch-size", "400"]
        result = CliRunner().invoke(main, ["plan", data, *given])
        assert result.exit_code == code, result.output
        assert SECRET not in result.output + result.stderr
    file.unlink()
    result = CliRunner().invoke(main, ["plan", data, *given])
    assert result.exit_code == 2
    assert "cannot read" in result.stderr
    assert "No such file" in result.stderr


@pytest.mark.parametrize("given", [f'{{"secret": "{SECRET}"', f'["{SECRET}"]'])
def test_options_that_cannot_be_read_are_not_repeated(data: str, given: str) -> None:
    result = CliRunner().invoke(main, ["plan", data, "--storage-options", given])
    assert result.exit_code == 2
    assert SECRET not in result.output + result.stderr
