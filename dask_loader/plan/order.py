"""The order of row groups in an epoch and of rows in a window. Pure."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def permutation(num_items: int, *key: object) -> Ints:
    """Permute range(num_items) by a key of plain values, for ever in the same way.

    NumPy promises that a bit generator's raw stream never changes, but not that
    Generator.permutation keeps its algorithm. So the stream itself is sorted: the high
    bits are random, the low bits are the item, which makes all words different and the
    result independent of the sorting method.

    Returns:
        The permuted items, int64, shape (num_items,).
    """
    if num_items < 2:
        return np.arange(num_items, dtype=np.int64)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(num_items)
    low_bits = np.uint64((1 << (num_items - 1).bit_length()) - 1)
    words &= ~low_bits
    words |= np.arange(num_items, dtype=np.uint64)
    words.sort()
    words &= low_bits
    return words.view(np.int64)


def row_line(num_kept: Ints, *, shuffle: bool, seed: int, epoch: int) -> Ints:
    """Lay the row groups that have rows left end to end.

    Args:
        num_kept: Rows left after the filters, one for each row group of the catalog.
        shuffle: Permute them by (seed, epoch), else keep the catalog's order.
        seed: The user's seed.
        epoch: Counted from 0.

    Returns:
        Indices into the catalog, int64, shape (row groups with rows left,).
    """
    groups = np.flatnonzero(num_kept)
    if shuffle:
        groups = groups[permutation(len(groups), "line", seed, epoch)]
    return groups.astype(np.int64, copy=False)
