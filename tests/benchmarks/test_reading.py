"""The benchmark of reading and mapping runs, on a small file."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks import reading
from dask_loader.read import files


def test_each_way_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "LocalFile", files.LocalFile)  # put back at the end
    path = tmp_path / "reading.parquet"
    monkeypatch.setattr(reading, "GROUP_ROWS", 1000)
    given = [str(path), "--runs", "1", "--row-groups", "2"]
    monkeypatch.setattr(sys, "argv", ["reading.py", *given])
    reading.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == list(reading.WAYS)
    assert all(re.search(r"\d CPU s/GB, [+-]\d", line) for line in lines)
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", ["reading.py"])
        reading.main()
