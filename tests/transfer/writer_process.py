"""A process that writes slabs of its parent's as it is told, a line of JSON at a time."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import Any

from dask_loader.transfer.shared import SlabName
from dask_loader.transfer.writer import Mappings, Writing

mappings = Mappings()
stack = ExitStack()
writing: Writing


def begin(path: str, nonce: list[int], generation: int, num_bytes: int) -> str:
    global writing
    name = SlabName(path, (nonce[0], nonce[1]), generation, num_bytes)
    writing = stack.enter_context(mappings.writing(name))
    return writing.outcome.value


def fill(start: int, stop: int, value: int) -> None:
    writing.block[start:stop] = value


def finish(generation: int) -> None:
    writing.finish(generation, 0)


def leave() -> None:
    stack.close()


for line in sys.stdin:
    command, *arguments = json.loads(line)
    answer: Any = globals()[command](*arguments)
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
