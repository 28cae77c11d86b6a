"""DataLoader workers in tests."""

from __future__ import annotations

import gc

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchdata.stateful_dataloader.stateful_dataloader import (
    _StatefulMultiProcessingDataLoaderIter,
)

_ITERATORS = (_MultiProcessingDataLoaderIter, _StatefulMultiProcessingDataLoaderIter)


def end_workers() -> None:
    """End the workers that an error's traceback keeps alive.

    Left to the garbage collector, torch takes five seconds for each of them.
    """
    for thing in gc.get_objects():
        if isinstance(thing, _ITERATORS):
            thing._shutdown_workers()
