"""The data sets: seeded, made once, each a folder of Parquet files and a manifest.

Row r of a set is in row group r // row_group_rows, counted over the files in the order
of their names, and its column "id" is r. The manifest, a JSON file beside the folder,
has what a contestant must deliver: the number of rows and the sum of each column.

    python benchmarks/sets.py demo-data/bench-sets --scale small
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

SCALES = ("tiny", "small", "full")

Array = npt.NDArray[Any]
Draw = Callable[[np.random.Generator, int], Array]  # (generator, rows) to a column

_EMBEDDING = 256
_TOKENS = 1024
_VOCABULARY = 50_000
_TEXT = (
    "the quick brown fox jumps over a lazy dog and then sleeps for a while in the sun "
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a set is at one scale. Files hold equally many rows, or fewer the last."""

    rows: int
    files: int
    row_group_rows: int


@dataclass(frozen=True, kw_only=True)
class BenchSet:
    """A set: what its columns are, and how large it is at each scale."""

    name: str
    columns: Callable[[], dict[str, Draw]]
    batch_rows: int
    shapes: dict[str, Shape]


def _floats(rng: np.random.Generator, rows: int) -> Array:
    return rng.standard_normal(rows, np.float32)


def _vectors(rng: np.random.Generator, rows: int) -> Array:
    return rng.standard_normal((rows, _EMBEDDING), np.float32)


def _tokens(rng: np.random.Generator, rows: int) -> Array:
    return rng.integers(0, _VOCABULARY, (rows, _TOKENS), np.int32)


def _texts(rng: np.random.Generator, rows: int) -> Array:
    """Pieces of 1 to 400 characters of one long text, 200 on average."""
    long = _TEXT * 20
    starts, lengths = rng.integers(0, 1000, rows), rng.integers(1, 401, rows)
    texts = [long[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    return np.array(texts, dtype=object)


_NUMBERS: tuple[tuple[str, Draw], ...] = (
    ("float32", _floats),
    ("int32", lambda rng, rows: rng.integers(0, 1000, rows, np.int32)),
    ("int64", lambda rng, rows: rng.integers(0, 2**40, rows, np.int64)),
    ("float64", lambda rng, rows: rng.standard_exponential(rows)),
    ("int8", lambda rng, rows: rng.integers(0, 100, rows, np.int8)),
    ("bool", lambda rng, rows: rng.integers(0, 2, rows, np.bool_)),
)


def _tabular() -> dict[str, Draw]:
    columns: dict[str, Draw] = {"label": _floats}
    for index in range(38):
        dtype, draw = _NUMBERS[index % len(_NUMBERS)]
        columns[f"f{index:03d}_{dtype}"] = draw
    return columns


SETS = {
    made.name: made
    for made in (
        BenchSet(
            name="tabular",
            columns=_tabular,
            batch_rows=4096,
            shapes={
                "tiny": Shape(rows=40_000, files=2, row_group_rows=8192),
                "small": Shape(rows=500_000, files=2, row_group_rows=32_768),
                "full": Shape(rows=8_000_000, files=8, row_group_rows=131_072),
            },
        ),
        BenchSet(
            name="embeddings",
            columns=lambda: {"label": _floats, "vector": _vectors},
            batch_rows=256,
            shapes={
                "tiny": Shape(rows=4000, files=2, row_group_rows=512),
                "small": Shape(rows=65_536, files=2, row_group_rows=4096),
                "full": Shape(rows=1_000_000, files=4, row_group_rows=16_384),
            },
        ),
        BenchSet(
            name="tokens",
            columns=lambda: {"tokens": _tokens},
            batch_rows=256,
            shapes={
                "tiny": Shape(rows=2000, files=2, row_group_rows=256),
                "small": Shape(rows=16_384, files=2, row_group_rows=1024),
                "full": Shape(rows=262_144, files=4, row_group_rows=8192),
            },
        ),
        BenchSet(
            name="strings",
            columns=lambda: {"label": _floats, "text": _texts},
            batch_rows=1024,
            shapes={
                "tiny": Shape(rows=10_000, files=2, row_group_rows=2048),
                "small": Shape(rows=200_000, files=2, row_group_rows=16_384),
                "full": Shape(rows=4_000_000, files=4, row_group_rows=131_072),
            },
        ),
        BenchSet(
            name="wide",
            columns=lambda: {f"f{i:03d}": _floats for i in range(999)},
            batch_rows=1024,
            shapes={
                "tiny": Shape(rows=4000, files=1, row_group_rows=1024),
                "small": Shape(rows=16_384, files=2, row_group_rows=4096),
                "full": Shape(rows=262_144, files=4, row_group_rows=16_384),
            },
        ),
        BenchSet(
            name="small_files",
            columns=_tabular,
            batch_rows=1024,
            shapes={
                "tiny": Shape(rows=10_000, files=10, row_group_rows=1024),
                "small": Shape(rows=204_800, files=100, row_group_rows=2048),
                "full": Shape(rows=2_048_000, files=1000, row_group_rows=2048),
            },
        ),
        BenchSet(
            name="one_group",
            columns=_tabular,
            batch_rows=4096,
            shapes={
                "tiny": Shape(rows=40_000, files=1, row_group_rows=40_000),
                "small": Shape(rows=500_000, files=1, row_group_rows=500_000),
                "full": Shape(rows=6_400_000, files=1, row_group_rows=6_400_000),
            },
        ),
    )
}


def make(folder: Path, bench_set: BenchSet, scale: str, *, seed: int = 0) -> Path:
    """Make a set unless it is there, and return its folder; see manifest_of().

    Each row group is drawn from Philox keyed by (seed, its number), so content does not
    depend on the files. One row group is in memory at a time, twice while it is written.
    """
    out = folder / f"{bench_set.name}-{scale}"
    if manifest_of(out).exists():
        return out
    shutil.rmtree(out, ignore_errors=True)  # what a killed run left behind
    out.mkdir(parents=True)
    shape, draws = bench_set.shapes[scale], bench_set.columns()
    sums: dict[str, float] = {}
    absolute: dict[str, float] = {}
    kinds: dict[str, str] = {}
    decoded_bytes = 0
    for file_number, bounds in enumerate(_files(shape)):
        writer = None
        for first, end in bounds:
            rng = np.random.Generator(
                np.random.Philox(key=[seed, first // shape.row_group_rows])
            )
            columns = {"id": np.arange(first, end, dtype=np.int64)}
            columns |= {name: draw(rng, end - first) for name, draw in draws.items()}
            for name, values in columns.items():
                total, size, kinds[name], num_bytes = _facts(values)
                sums[name] = sums.get(name, 0.0) + total
                absolute[name] = absolute.get(name, 0.0) + size
                decoded_bytes += num_bytes
            table = pa.table({name: _arrow(v) for name, v in columns.items()})
            if writer is None:
                path = out / f"part-{file_number:05d}.parquet"
                few = [n for n in columns if n.endswith(("_int32", "_int8"))]
                writer = pq.ParquetWriter(path, table.schema, use_dictionary=few)
            writer.write_table(table, row_group_size=shape.row_group_rows)
        if writer is not None:
            writer.close()
    manifest = {
        "set": bench_set.name,
        "scale": scale,
        "seed": seed,
        "rows": shape.rows,
        "files": sum(1 for _ in out.glob("*.parquet")),
        "row_groups": -(-shape.rows // shape.row_group_rows),
        "row_group_rows": shape.row_group_rows,
        "batch_rows": bench_set.batch_rows,
        "decoded_bytes": decoded_bytes,
        "disk_bytes": sum(p.stat().st_size for p in out.glob("*.parquet")),
        "kinds": kinds,
        "sums": sums,
        "absolute_sums": absolute,
    }
    manifest_of(out).write_text(json.dumps(manifest, indent=1) + "\n")
    return out


def manifest_of(folder: Path) -> Path:
    """Return where a set's manifest is: not in the folder, where some would read it."""
    return folder.with_name(f"{folder.name}.json")


def _files(shape: Shape) -> Iterator[list[tuple[int, int]]]:
    """Return for each file its row groups, as (first row, one past the last)."""
    firsts = range(0, shape.rows, shape.row_group_rows)
    groups = [(f, min(f + shape.row_group_rows, shape.rows)) for f in firsts]
    per_file = -(-len(groups) // shape.files)
    for start in range(0, len(groups), per_file):
        yield groups[start : start + per_file]


def _facts(values: Array) -> tuple[float, float, str, int]:
    """Return sum, sum of the absolute values, kind and bytes as tensors (text: UTF-8)."""
    if values.dtype == object:
        length = float(sum(map(len, values)))
        return length, length, "text", int(length)
    exact = values.astype(np.float64)
    kind = "number" if values.ndim == 1 else "vector"
    return float(exact.sum()), float(np.abs(exact).sum()), kind, values.nbytes


def _arrow(values: Array) -> pa.Array:
    if values.ndim == 2:
        flat = pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values)


def main(argv: list[str] | None = None) -> int:
    """Make the sets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    args = parser.parse_args(argv)
    for name in args.sets:
        print(make(args.folder, SETS[name], args.scale))
    return 0


if __name__ == "__main__":
    sys.exit(main())
