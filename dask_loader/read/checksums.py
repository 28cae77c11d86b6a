"""Whether the pages that are read have checksums, so that damage in them would be seen.

Checksums are optional in Parquet, and writers give them to all pages of a file or to none.
So one page header is looked at for each row group that a window reads, the first of the
first column that is read: 3 us.
"""

from __future__ import annotations

import pyarrow.parquet as pq

from dask_loader.catalog.thrift import I32, ThriftError, varint
from dask_loader.read.files import LocalFile
from dask_loader.read.ranges import RangedParquet
from dask_loader.read.task import ReadOptions, SliceTask

# Before the checksum, field 4 of a PageHeader, come its type and two lengths (Parquet's
# parquet.thrift). Each is a field of type i32, one after the last.
_FIELDS_BEFORE = 3
_NEXT_IS_I32 = 1 << 4 | I32


def unchecked_rows(file: pq.ParquetFile, piece: SliceTask, options: ReadOptions) -> int:
    """Return how many of a slice's rows came from pages that nothing verified.

    Args:
        file: The slice's, after its rows were read.
        piece: The slice.
        options: Says whether checksums are verified, and what is read.

    Returns:
        All of them or 0. Encrypted files are not looked at: 0. So it is where no page is
        read, for columns that are made of paths and row numbers.
    """
    assert isinstance(file, LocalFile | RangedParquet)
    header = file.first_header
    if header is None or options.storage.decryption is not None:
        return 0
    if options.verify_checksums and has_checksum(header):
        return 0
    return piece.stop - piece.start


def has_checksum(header: bytes) -> bool:
    """Return whether a page's header has a checksum.

    Args:
        header: In Thrift's compact protocol; what comes behind it is not looked at.
            One that is cut short, or is no page header, has none.
    """
    at = 0
    try:
        for _ in range(_FIELDS_BEFORE):
            if header[at] != _NEXT_IS_I32:
                return False
            at = varint(header, at + 1)[1]
        return header[at] == _NEXT_IS_I32
    except (IndexError, ThriftError):
        return False
