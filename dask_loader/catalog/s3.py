"""Ranges from S3 whose answers say of which version they are.

s3fs drops what an answer's headers tell: the object's ETag and length. With them a range
is known to be of the version that was planned, and no look (HEAD) is needed after it.
"""

from __future__ import annotations

import sys
from typing import Any


def can_tell(system: Any) -> bool:
    """Whether a file system is s3fs, which reads as it does, so that this may instead."""
    library = sys.modules.get("s3fs")  # whoever has such a system has imported it
    own = getattr(library, "S3FileSystem", None)
    read = getattr(type(system), "_cat_file", None)
    return own is not None and read is own._cat_file


async def read_range(
    system: Any, path: str, start: int, stop: int
) -> tuple[bytes, tuple[int, str] | None]:
    """Return bytes [start, stop), and the length and ETag of what they are of.

    They are None where the store does not tell. Credentials, address, retries and all
    other options are those of s3fs, which makes the request.
    """
    bucket, key, version = system.split_path(path)
    which = {"VersionId": version} if version else {}
    answer = await system._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **which
    )
    body = answer["Body"]
    try:
        content = await body.read()
    finally:
        body.close()
    tag = str(answer.get("ETag") or "")
    length = str(answer.get("ContentRange") or "").rpartition("/")[2]
    return content, (int(length), tag) if tag and length.isdigit() else None
