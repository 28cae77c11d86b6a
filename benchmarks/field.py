"""Who takes part: name, program, environment, and on which sets."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT = "LIMIT"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contestant in one variant.

    Attributes:
        name: As in tables and --only.
        program: A module of contestants/, or the path of a file.
        peer: The environment it needs; None for this interpreter.
        options: Fields of the contestant's Case.
        sets: Where it takes part; None for all.
        orders: Values of shuffle with which it takes part.
    """

    name: str
    program: str
    peer: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sets: frozenset[str] | None = None
    orders: tuple[bool, ...] = (False, True)

    def command(self, peers: Path | None) -> list[str]:
        """Return how to start it.

        Raises:
            FileNotFoundError: Its environment has not been made.
        """
        python = sys.executable
        if self.peer is not None:
            found = (peers or Path(".venv-peers")) / self.peer / "bin" / "python"
            if not found.exists():
                raise FileNotFoundError(
                    f"no environment {found.parent.parent}; make bench-peers makes it"
                )
            python = str(found.absolute())  # resolved, it would leave the environment
        if self.program.endswith(".py"):
            return [python, str(Path(self.program).absolute())]
        return [python, "-m", f"contestants.{self.program}"]


_NUMERIC = frozenset({"tabular", "wide", "small_files", "one_group"})
_WORKERS = {"num_workers": 2}
_PIECES = {"mix": "pieces"}
_MATRIX = {"matrix": True}

OURS = (
    Entry(name=LIMIT, program="limit"),
    Entry(name="threads", program="ours_threads"),
    Entry(
        name="threads, matrix", program="ours_threads", options=_MATRIX, sets=_NUMERIC
    ),
    Entry(name="threads, 2 workers", program="ours_threads", options=_WORKERS),
    Entry(name="cluster", program="ours_cluster"),
    Entry(
        name="cluster, matrix", program="ours_cluster", options=_MATRIX, sets=_NUMERIC
    ),
    Entry(name="cluster over TCP", program="ours_tcp"),
    Entry(name="plain", program="plain"),
    Entry(name="plain, 2 workers", program="plain", options=_WORKERS),
    Entry(name="plain, 2 threads ahead", program="plain", options={"threads": 2}),
)

PEERS = (
    Entry(name="Daft", program="daft", peer="daft"),
    Entry(name="HF datasets", program="hf", peer="hf"),
    Entry(name="HF datasets, 2 workers", program="hf", peer="hf", options=_WORKERS),
    Entry(name="torch-dataloader-utils", program="tdu", peer="tdu"),
    Entry(
        name="torch-dataloader-utils, 2 workers",
        program="tdu",
        peer="tdu",
        options=_WORKERS,
    ),
    Entry(name="dask.dataframe", program="dask_df", peer="dask_df"),
    Entry(
        name="torch-dataloader-utils, splits mixed",
        program="tdu",
        peer="tdu",
        options=_PIECES,
        orders=(True,),
    ),
    Entry(name="Ray Data", program="ray_data", peer="ray_data"),
    Entry(name="Lance", program="lance", peer="lance"),
    Entry(
        name="Lance, fragments mixed",
        program="lance",
        peer="lance",
        options=_PIECES,
        orders=(True,),
    ),
    Entry(name="petastorm", program="petastorm", peer="petastorm"),
)


def choose(
    set_name: str,
    *,
    shuffle: bool,
    only: list[str],
    peers: Path | None,
    also: list[Path],
) -> list[Entry]:
    """Return who takes part on a set, LIMIT first and always.

    Args:
        set_name: The set's.
        shuffle: Whether rows are to be mixed.
        only: Names of Entries, or of programs for all their variants; empty for all.
        peers: Folder of the peers' environments; None leaves them out unless they are
            named in `only`.
        also: Contestants in files of their own.
    """
    everyone = (*OURS, *PEERS)
    programs = {*only} - {entry.name for entry in everyone}
    chosen = [
        entry
        for entry in (everyone if peers is not None or only else OURS)
        if (entry.sets is None or set_name in entry.sets)
        and shuffle in entry.orders
        and (not only or entry.name in (LIMIT, *only) or entry.program in programs)
    ]
    return chosen + [Entry(name=path.stem, program=str(path)) for path in also]


def names() -> list[str]:
    """Return all that --only may say."""
    both = [(entry.name, entry.program) for entry in (*OURS, *PEERS)]
    return [*dict.fromkeys(name for pair in both for name in pair)]
