"""Take the state of torchdata's StatefulDataLoader apart and make one of ours of it.

Only its layout is known here, torchdata is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_loader.errors import ResumeError
from dask_loader.plan.local import is_part_state, join_parts


def from_stateful_dataloader(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a run from that of a StatefulDataLoader over a ParquetDataset.

    torchdata's state fits the same number of workers and the same world size only; what is
    returned here fits any, as ParquetDataset.state_dict() does.

    Args:
        state: What StatefulDataLoader.state_dict() returned, on any rank.

    Raises:
        ResumeError: It is none, its dataset was no ParquetDataset, or it yielded single
            rows.
    """
    if not isinstance(state, Mapping):
        raise ResumeError(f"{state!r:.80} is not a state of a StatefulDataLoader")
    try:
        if "_snapshot" in state:
            workers = state["_snapshot"]["_worker_snapshots"].values()
            parts = [worker["dataset_state"] for worker in workers]
            more = state["_steps_since_snapshot"]
        else:
            parts, more = [state["dataset_state"]], 0
    except (KeyError, TypeError, AttributeError) as error:
        raise ResumeError(
            f"the state is not one of a StatefulDataLoader: {error!r} is what it lacks; "
            "pass what its state_dict() returned"
        ) from error
    if "_snapshot" not in state and _is_whole(parts[0]):
        return dict(parts[0])
    if not parts or not all(map(is_part_state, parts)):
        raise ResumeError(
            "the StatefulDataLoader's dataset was not a ParquetDataset: its state has "
            f"dataset_state={parts!r:.200}"
        )
    return join_parts(parts, more_steps=more)


def _is_whole(state: Any) -> bool:
    return isinstance(state, Mapping) and "stages" in state and not is_part_state(state)
