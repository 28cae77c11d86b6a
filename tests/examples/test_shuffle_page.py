"""The script of docs/shuffle.md that mixes files for good."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PAGE = Path(__file__).parents[2] / "docs" / "shuffle.md"
ROWS, LABELS = 50_000, 10


def test_the_script_writes_each_row_once_and_makes_each_row_group_a_random_sample(
    tmp_path: Path,
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    script = script.replace("row_group_rows = 10_000", "row_group_rows = 1_000")
    (tmp_path / "sorted").mkdir()
    for part in range(2):
        ids = np.arange(ROWS // 2) + part * ROWS // 2
        table = pa.table({"id": ids, "label": ids * LABELS // ROWS})
        pq.write_table(table, tmp_path / "sorted" / f"{part}.parquet")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    found = [pq.ParquetFile(file) for file in sorted((tmp_path / "mixed").iterdir())]
    tables = [
        file.read_row_group(i) for file in found for i in range(file.num_row_groups)
    ]
    for file in found:
        file.close()
    ids = np.concatenate([table["id"].to_numpy() for table in tables])
    assert sorted(ids.tolist()) == list(range(ROWS))
    whole = [table for table in tables if len(table) == 1000]
    assert len(whole) > 30
    for table in whole:  # 100 of each label, give or take six times its deviation
        counts = np.bincount(table["label"].to_numpy(), minlength=LABELS)
        assert np.all(np.abs(counts - 100) < 60)
