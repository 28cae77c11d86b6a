"""What NumPy would take for a dtype, and torch could not, is refused in words."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from dask_loader.catalog.delivery import check_delivery
from dask_loader.errors import ConfigError


@pytest.mark.parametrize(
    "given",
    [
        None,  # NumPy's own default, float64
        ">f4",  # bytes in the other order
        np.dtype(">i8"),
        "f4,f4",
        "(2,)f4",
        "(x)f4",  # ValueError in NumPy
        ",",  # SyntaxError in NumPy
        "",
        ("f4", (2,)),
        {"a": 1},
        [],
        "longdouble",
        "M8[s]",
        "str",
        1.5,
        torch.complex64,
        torch.bfloat16,
        np.ndarray,
    ],
)
def test_it_is_refused_with_its_own_spelling(given) -> None:
    text = (
        f"dtypes={{'a': {given!r}}} is no dtype that NumPy and torch share; give torch."
    )
    with pytest.raises(ConfigError, match=re.escape(text)):
        check_delivery(None, {"a": given})


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64", "float16", "int8", "?"])
def test_a_dtype_that_is_taken_is_one_that_torch_has(name) -> None:
    ((_, dtype),) = check_delivery(None, {"a": name}).dtypes
    assert torch.from_numpy(np.zeros(1, dtype=dtype)).shape == (1,)
