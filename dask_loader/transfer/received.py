"""What a Dask worker left in a slab, as a window, if it is one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dask_loader.catalog.forms import Form
from dask_loader.transfer.texts import unpack_texts
from dask_loader.transfer.window import Block, WindowData, block_bytes, lay_out

log = logging.getLogger(__name__)


def window_in(
    forms: Sequence[Form], num_rows: int, block: Block, packed: Block
) -> WindowData | None:
    """Return the window in a slab; None if what is there cannot be one.

    Args:
        forms: Its columns.
        num_rows: Its rows.
        block: The slab between header and texts.
        packed: The texts as an Arrow IPC stream; may have bytes after its end.
    """
    num_bytes = block_bytes(forms, num_rows)
    if len(block) < num_bytes:
        return None
    window = WindowData(num_rows, lay_out(forms, num_rows, block[:num_bytes]))
    try:
        if len(packed):
            window.texts = unpack_texts(packed)
    # Arrow's ArrowInvalid is a ValueError; a stream without a batch is StopIteration.
    except (OSError, ValueError, StopIteration) as error:
        # Not the error itself: whoever keeps the record must not keep the slab.
        log.warning("texts in shared memory cannot be read: %s", repr(error))
        return None
    if window.texts.keys() != {form.name for form in forms if not form.is_fixed}:
        return None
    if any(len(text) != num_rows for text in window.texts.values()):
        return None
    return window
