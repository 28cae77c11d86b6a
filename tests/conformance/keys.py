"""Keys of parquet-testing's encrypted files, as its README publishes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow.parquet.encryption as pe

# The footer's key; pyarrow takes no keys of single columns but through a KMS.
_FOOTER_KEYS = {
    "aes128": b"0123456789012345",
    "aes256": b"01234567890123456789012345678901",
}


def decryption(name: str) -> Callable[[str], Any]:
    """Return a function for decryption=; "wrong" has a key that fits no file."""
    return partial(_properties, name)


def _properties(name: str, path: str) -> Any:
    del path
    key = _FOOTER_KEYS.get(name, b"9" * 16)
    return pe.create_decryption_properties(key, allow_plaintext_files=True)


def key_name(path: str) -> str:
    """Return the name of the key that opens a file whole, "" where none does."""
    if not path.endswith("uniform_encryption.parquet.encrypted"):
        return ""
    return "aes256" if "aes256" in path else "aes128"
