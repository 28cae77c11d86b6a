"""Parquet's own encryption: the user's keys, and what is said where they are missing.

Keys are asked for anew whenever a file is opened, in the process that opens it: Arrow's
decryption properties do not pickle. They are kept nowhere by this package, nor is what an
encrypted footer says: see prepare.load_catalog, which does without the cache.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dask_loader.errors import ConfigError, DecryptionError

ENCRYPTED_MAGIC = b"PARE"
# Where Arrow fails for want of the right keys, its texts have one of these.
_WORDS = ("decrypt", "encrypt", "crypto", "column key", "aad ")
_WHAT_TO_GIVE = (
    "give decryption=, a function that takes the file's path and returns its "
    "pyarrow.parquet.encryption.FileDecryptionProperties"
)


@dataclass(frozen=True, slots=True)
class Decryption:
    """The user's function, told from others by a token: unpickled ones are never equal.

    Attributes:
        function: Takes a path; returns FileDecryptionProperties, or None for a file that
            is not encrypted. It may hold keys: never printed.
        token: Random.
    """

    function: Callable[[str], Any] = field(repr=False, compare=False)
    token: str

    def properties(self, path: str) -> Any:
        """Ask for the properties of one file.

        Raises:
            DecryptionError: The function failed; its text, which may hold a key, is left
                to the error's cause.
        """
        try:
            return self.function(path)
        except Exception as error:  # the user's own code
            raise DecryptionError(
                f"decryption= raised {type(error).__name__} for {path!r}; see the error "
                "that caused this one",
                path=path,
            ) from error


def check_decryption(decryption: Any) -> Decryption | None:
    """Check what the user gave for decryption=.

    Raises:
        ConfigError: It is no function.
    """
    if decryption is None:
        return None
    if not callable(decryption):
        # Not repr: it may be a key.
        raise ConfigError(
            f"decryption= must be a function, not {type(decryption).__name__}; "
            + _WHAT_TO_GIVE
        )
    return Decryption(decryption, uuid.uuid4().hex)


def decryption_error(
    path: str, error: Exception, *, has_keys: bool, column: str | None = None
) -> DecryptionError | None:
    """Describe an error of Arrow's as one of keys, or return None if it is none.

    Args:
        path: The file.
        error: Arrow's; its texts name no keys.
        has_keys: Whether the user gave any for this file.
        column: The column that was opened, if one was.
    """
    text = str(error)
    if isinstance(error, DecryptionError):
        return error
    if has_keys and not isinstance(
        error, OSError | pa.ArrowException | UnicodeDecodeError
    ):
        # A KMS client of the user's: its text may hold a key.
        return DecryptionError(
            f"what decryption= returned for {path!r} raised {type(error).__name__} when "
            "keys were asked of it; see the error that caused this one",
            path=path,
            column=column,
        )
    if not any(word in text.lower() for word in _WORDS):
        return None
    what = repr(path) if column is None else f"column {column!r} of {path!r}"
    if has_keys:
        return DecryptionError(
            f"{what} cannot be decrypted with what decryption= returned for this file: "
            f"{text}; give the keys, and the AAD prefix if there is one, that it was "
            "encrypted with",
            path=path,
            column=column,
        )
    leave = "" if column is None else ", or leave the column out with columns=[...]"
    return DecryptionError(
        f"{what} is encrypted: {_WHAT_TO_GIVE}{leave}", path=path, column=column
    )
