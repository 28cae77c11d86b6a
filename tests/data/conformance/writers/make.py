"""Writes the files beside this one, with duckdb, polars and fastparquet.

Run in an environment of its own: pip install duckdb polars fastparquet pandas pyarrow.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import duckdb
import fastparquet
import pandas as pd
import polars as pl

HERE = Path(__file__).parent
ROWS = 700


def main() -> None:
    start = datetime.datetime(2020, 1, 1)
    columns = {
        "i": [i * i - 1000 for i in range(ROWS)],
        "u": [i % 200 for i in range(ROWS)],
        "f": [i / 7 if i % 11 else None for i in range(ROWS)],
        "s": [f"text {i % 13} \N{SNOWMAN}" if i % 9 else None for i in range(ROWS)],
        "b": [i % 3 == 0 for i in range(ROWS)],
        "t": [start + datetime.timedelta(hours=i) for i in range(ROWS)],
        "l": [list(range(i % 4)) if i % 10 else None for i in range(ROWS)],
        "st": [{"x": i, "y": str(i)} for i in range(ROWS)],
    }
    frame = pl.DataFrame(columns).with_columns(
        pl.col("u").cast(pl.UInt8), pl.col("s").cast(pl.Categorical).alias("c")
    )
    for codec in ("zstd", "snappy", "lz4", "gzip", "brotli", "uncompressed"):
        path = HERE / f"polars-{pl.__version__}-{codec}.parquet"
        frame.write_parquet(path, compression=codec, row_group_size=300)
    for version in ("V1", "V2"):
        duckdb.sql(
            f"""COPY (SELECT i::INTEGER AS i, (i % 200)::UTINYINT AS u,
            CASE WHEN i % 11 = 0 THEN NULL ELSE i / 7 END AS f, 'text ' || i % 13 AS s,
            (i * 1.25)::DECIMAL(9, 2) AS d, (i::HUGEINT * 10**20)::DECIMAL(38, 0) AS w,
            DATE '2020-01-01' + i::INTEGER AS day, TIMESTAMPTZ '2020-01-01' AS t,
            range(i % 4) AS l, {{'x': i, 'y': [i, NULL]}} AS st,
            MAP {{'k' || i % 5: i}} AS m, uuid() AS id, i % 2 = 0 AS b,
            TIME '12:30:00' AS at, 'x'::BLOB AS raw, [i, i + 1]::BIGINT[2] AS pair,
            'small'::ENUM('small', 'large') AS e FROM range({ROWS}) r(i))
            TO '{HERE}/duckdb-{duckdb.__version__}-{version.lower()}.parquet'
            (FORMAT parquet, PARQUET_VERSION {version}, ROW_GROUP_SIZE 2048,
            COMPRESSION zstd)"""
        )
    table = pd.DataFrame({k: columns[k] for k in "iufsbt"})
    table["c"] = table["s"].astype("category")
    for codec in ("SNAPPY", "GZIP", "ZSTD", "UNCOMPRESSED"):
        path = HERE / f"fastparquet-{fastparquet.__version__}-{codec.lower()}.parquet"
        fastparquet.write(
            str(path), table, compression=codec, row_group_offsets=[0, 250, 600]
        )


if __name__ == "__main__":
    main()
