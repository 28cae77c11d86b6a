"""Every codec, encoding and page version that pyarrow has, with pyarrow's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import BadFileError, ParquetDataset
from tests.conformance.child import delivered

ROWS = 400
CODECS = ("none", "snappy", "gzip", "brotli", "zstd", "lz4", "lz4_raw")
TABLE = pa.table(
    {
        "i": pa.array([(i * 7919) % 1000 for i in range(ROWS)], pa.int64()),
        "f": np.sin(np.arange(ROWS)).astype(np.float32),
        "b": [i % 3 == 0 for i in range(ROWS)],
        "s": [f"text {i % 17}" for i in range(ROWS)],
        "w": pa.array([i.to_bytes(4, "big") for i in range(ROWS)], pa.binary(4)),
    }
)
_PLAIN: dict[str, Any] = {"use_dictionary": False}
ENCODINGS: dict[str, dict[str, Any]] = {
    "dictionary": {},
    "plain": _PLAIN,
    "delta": {
        **_PLAIN,
        "column_encoding": {
            "i": "DELTA_BINARY_PACKED",
            "s": "DELTA_BYTE_ARRAY",
            "b": "RLE",
        },
    },
    "lengths": {**_PLAIN, "column_encoding": {"s": "DELTA_LENGTH_BYTE_ARRAY"}},
    "split": {
        **_PLAIN,
        "column_encoding": dict.fromkeys(("i", "f", "w"), "BYTE_STREAM_SPLIT"),
    },
}


def read(path: Path, **options: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with ParquetDataset(
        path, client="threads", footer_cache=False, **options
    ) as dataset:
        for batch in dataset:
            for name, column in batch.items():
                found.setdefault(name, []).extend(delivered(column))
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_encoding_and_page_version_gives_pyarrows_values(
    tmp_path: Path, codec: str
) -> None:
    if codec not in ("none", "lz4_raw") and not pa.Codec.is_available(codec):
        pytest.skip(f"this pyarrow has no {codec}")
    wanted = TABLE.to_pydict()
    path = tmp_path / "a.parquet"
    for options in ENCODINGS.values():
        for version in ("1.0", "2.0"):
            pq.write_table(
                TABLE,
                path,
                compression=codec,
                data_page_version=version,
                data_page_size=500,
                row_group_size=150,
                write_page_index=True,
                write_page_checksum=True,
                sorting_columns=[pq.SortingColumn(0)],
                **options,
            )
            assert read(path) == wanted


def test_a_codec_that_pyarrow_lacks_is_told_by_name_when_the_dataset_is_made(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": range(9)}), path, compression="gzip")
    content = bytearray(path.read_bytes())
    # The thrift field "codec" after the path ["x"]: GZIP is 2 (4 in zigzag), LZO 3 (6).
    at = content.rindex(b"\x19\x18\x01x\x15\x04")
    content[at + 5] = 6
    path.write_bytes(content)
    text = r"column 'x' of row group 0 of .*LZO"
    with pytest.raises(BadFileError, match=text) as e:
        ParquetDataset(path, client="threads", footer_cache=False)
    assert repr(str(path)) in str(e.value)


def test_a_flipped_bit_in_a_checked_page_is_told_with_its_row_group(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        TABLE.select(["f"]),
        path,
        compression="none",
        use_dictionary=False,
        row_group_size=200,
        write_page_checksum=True,
    )
    chunk = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=r"row group 1 of .*CRC checksum") as e:
        read(path)
    assert repr(str(path)) in str(e.value)
    assert read(path, verify_checksums=False)["f"] != TABLE["f"].to_pylist()


@pytest.mark.parametrize(
    "name",
    [
        "conformance/parquet-testing/rle-dict-uncompressed-corrupt-checksum.parquet",
        "rle-dict-uncompressed-corrupt-checksum.parquet",
    ],
)
def test_files_with_wrong_checksums_are_refused(name: str) -> None:
    path = Path(__file__).parent / "data" / name
    with pytest.raises(BadFileError, match=r"row group 0 of .*CRC checksum"):
        read(path)
