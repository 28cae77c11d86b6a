"""Large functions of users are sent to a cluster once, not with each of their tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dask_loader.engine.connection import Live
from dask_loader.read.task import ReadOptions, WindowTask
from dask_loader.read.transform import Function

# A window's task has some 5 kB without it; the scheduler passes on 160 of them a second.
_MAX_TASK_BYTES = 64 << 10


class Functions:
    """What stands for the functions of one engine. Used by the threads that submit."""

    def __init__(self, submit: Callable[[Any, Function], Any]) -> None:
        """Take the way to have a function loaded.

        Args:
            submit: Is given a client, and returns a future of the loaded function, which
                workers fetch from each other, and have loaded anew where it is lost.
        """
        self._submit = submit
        self._light: dict[tuple[int, int], tuple[ReadOptions, ReadOptions, Any]] = {}

    def split(self, task: WindowTask, live: Live) -> tuple[WindowTask, Any]:
        """Return a task that travels light, and its function's future or None.

        Args:
            task: To be submitted.
            live: By this client; its generation is that of the future.
        """
        options = task.options
        transform = options.transform
        if transform is None or len(transform.function.payload) <= _MAX_TASK_BYTES:
            return task, None
        key = (id(options), live.generation)
        known = self._light.get(key)
        if known is None:
            future = self._submit(live.client, transform.function)
            light = replace(transform, function=transform.function.without_payload())
            known = (options, replace(options, transform=light), future)
            self._light = {key: known}  # an engine has one dataset
        return replace(task, options=known[1]), known[2]
