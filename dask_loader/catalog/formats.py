"""What batches are made of: output_format=. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from dask_loader.catalog.forms import Form
from dask_loader.errors import ConfigError

OutputFormat = Literal["torch", "numpy", "arrow"]


def check_format(
    output_format: Any, *, batch_size: int | None, **shaping: Any
) -> OutputFormat:
    """Check what the user gave for output_format=, and what cannot go with it.

    Args:
        output_format: As given.
        batch_size: Of the dataset.
        **shaping: Options that make tensors of columns; None where they were left out.

    Raises:
        ConfigError: It is no format, or something else does not apply to it.
    """
    known = get_args(OutputFormat)
    if output_format not in known:
        raise ConfigError(f"output_format={output_format!r} must be one of {known!r}")
    if output_format == "arrow":
        for name, value in shaping.items():
            if value is not None:
                raise ConfigError(
                    f'{name}={value!r} makes tensors, and output_format="arrow" gives '
                    "columns in Arrow's own types, nulls included; leave one of the two "
                    "out"
                )
        if batch_size is None:
            raise ConfigError(
                'output_format="arrow" gives tables, and batch_size=None single rows; '
                "give a batch_size"
            )
    found: OutputFormat = output_format
    return found


def whole_forms(forms: Sequence[Form]) -> tuple[Form, ...]:
    """Return the forms of columns that are delivered in Arrow's own types."""
    return tuple(replace(Form(form.name, ""), whole=True) for form in forms)
