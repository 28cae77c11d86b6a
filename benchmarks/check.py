"""Did a contestant deliver the whole set? Pure: values in, a sentence or None out."""

from __future__ import annotations

from typing import Any

# Sums of float32 columns are made in float32 within a batch, as the training loop would:
# some 1e-7 of the absolute sum for each of a few steps.
_TOLERANCE = 1e-5


def fault(manifest: dict[str, Any], answer: dict[str, Any]) -> str | None:
    """Compare a whole epoch with the set's manifest.

    Args:
        manifest: rows, sums and absolute_sums of the set.
        answer: rows and sums that were delivered. A contestant without sums (LIMIT) is
            checked by its rows alone.

    Returns:
        What is wrong, or None.
    """
    if answer["rows"] != manifest["rows"]:
        return f"delivered {answer['rows']:,} rows of {manifest['rows']:,}"
    if not answer["sums"]:
        return None
    missing = sorted({*manifest["sums"]} ^ {*answer["sums"]})
    if missing:
        return f"columns {missing[:5]!r} are missing or were not asked for"
    for name, wanted in manifest["sums"].items():
        # Row numbers are whole, and their sum below 2**53: exact also as a float.
        allowed = _TOLERANCE * manifest["absolute_sums"][name] if name != "id" else 0.0
        if not abs(answer["sums"][name] - wanted) <= allowed:
            return f"column {name!r} sums to {answer['sums'][name]!r}, not {wanted!r}"
    return None
