"""Large functions of users are sent to a cluster once, not with each of their tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dask_loader.read.task import ReadOptions, WindowTask
from dask_loader.read.transform import Function

# A window's task has some 5 kB without it; the scheduler passes on 160 of them a second.
_MAX_TASK_BYTES = 64 << 10


class Functions:
    """What stands for the functions of one engine. Used by the threads that submit."""

    def __init__(self, submit: Callable[[Function], Any]) -> None:
        """Take the way to have a function loaded.

        Args:
            submit: Returns a future of the loaded function, which workers fetch from each
                other, and have loaded anew where it is lost.
        """
        self._submit = submit
        self._light: dict[int, tuple[ReadOptions, ReadOptions, Any]] = {}

    def split(self, task: WindowTask) -> tuple[WindowTask, Any]:
        """Return a task that travels light, and the future of its function or None."""
        options = task.options
        transform = options.transform
        if transform is None or len(transform.function.payload) <= _MAX_TASK_BYTES:
            return task, None
        known = self._light.get(id(options))
        if known is None:
            future = self._submit(transform.function)
            light = replace(transform, function=transform.function.without_payload())
            known = (options, replace(options, transform=light), future)
            self._light = {id(options): known}  # an engine has one dataset
        return replace(task, options=known[1]), known[2]
