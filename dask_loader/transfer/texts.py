"""Text and binary columns as one buffer, and back."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def pack_texts(texts: dict[str, pa.Array]) -> pa.Buffer:
    """Write columns of one length as an Arrow IPC stream.

    IPC writes only a slice's own rows; pickling an array would ship its parent.
    """
    batch = pa.record_batch(list(texts.values()), names=list(texts))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def unpack_texts(packed: Any) -> dict[str, pa.Array]:
    """Read what pack_texts wrote; the columns are views on it."""
    batch = pa.ipc.open_stream(pa.py_buffer(packed)).read_next_batch()
    return dict(zip(batch.schema.names, batch.columns, strict=True))
