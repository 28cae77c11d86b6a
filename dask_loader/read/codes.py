"""Values into their places in a vocabulary."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow as pa

from dask_loader.catalog.flat import fixed_lists
from dask_loader.catalog.forms import Form
from dask_loader.catalog.vocabulary import Vocabulary
from dask_loader.read.cast import MisfitError

# Each task brings its vocabularies along; the dicts are made once.
_MAX_KEPT = 256
_lock = threading.Lock()
_kept: OrderedDict[str, dict[Any, int]] = OrderedDict()


def encode(array: pa.Array, form: Form, vocabulary: Vocabulary) -> pa.Array:
    """Return an array's codes, int32, null where the array is.

    Args:
        array: Values, or a dictionary of them; also in fixed-size lists.
        form: The column's.
        vocabulary: All values.

    Raises:
        MisfitError: A value is not in the vocabulary; those of a dictionary that no row
            has do not matter.
    """
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        items = array.values.slice(array.offset * width, len(array) * width)
        codes = encode(items, form, vocabulary)
        mask = array.is_null() if array.null_count else None
        return fixed_lists(codes, width, len(array), mask)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    lookup = _lookup(vocabulary)
    values = array.dictionary.to_pylist()
    codes = np.array([lookup.get(value, -1) for value in values], dtype=np.int32)
    is_null = np.array([value is None for value in values], dtype=np.bool_)
    found = pa.array(codes, mask=is_null).take(array.indices)
    if (codes[~is_null] < 0).any():
        flat = found.fill_null(0).to_numpy(zero_copy_only=False)
        if (flat < 0).any():
            _refuse(array[int(np.argmax(flat < 0))].as_py(), form, vocabulary)
    return found


def code_of(value: Any, vocabulary: Vocabulary) -> int:
    """Return the code of a value that is in the vocabulary."""
    return _lookup(vocabulary)[value]


def _refuse(value: Any, form: Form, vocabulary: Vocabulary) -> None:
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:77]}..."
    raise MisfitError(
        f"{text} is not among the {len(vocabulary.values)} values of its vocabulary",
        f"add it to vocabulary={{{form.name!r}: [...]}}, or let the values be found with "
        f"vocabulary={{{form.name!r}: True}}",
    )


def _lookup(vocabulary: Vocabulary) -> dict[Any, int]:
    with _lock:
        known = _kept.get(vocabulary.digest)
        if known is not None:
            _kept.move_to_end(vocabulary.digest)
            return known
    values = vocabulary.values.to_pylist()
    made = {value: code for code, value in enumerate(values)}
    with _lock:
        _kept[vocabulary.digest] = made
        while len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)
    return made
