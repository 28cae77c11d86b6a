"""Options that commands share, and the values that people write for them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from dask_loader.errors import DaskLoaderError

Command = TypeVar("Command", bound=Callable[..., Any])


def _literal(*kinds: type, is_secret: bool = False) -> Callable[[str], Any]:
    """Return what reads a value of these kinds, written as JSON or as Python would.

    Args:
        *kinds: What it may be.
        is_secret: Never print it; "@FILE" takes it from a file, as a command line can be
            seen by all users of a machine.
    """

    def read(text: str) -> Any:
        if is_secret and text.startswith("@"):
            try:
                text = Path(text[1:]).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise click.BadParameter(f"cannot read {text[1:]!r}: {error}") from None
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(text)
            except (ValueError, SyntaxError, TypeError):
                continue
            if isinstance(found, kinds):
                return found
        shown = "the value" if is_secret else repr(text)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise click.BadParameter(f"{shown} is no {names} in JSON or Python")

    return read


def _names(text: str) -> list[str]:
    if text.lstrip().startswith("["):
        found: list[str] = _literal(list)(text)
        return found
    return [name.strip() for name in text.split(",")]


def _amount(text: str) -> int | str:
    return int(text) if text.strip().isdecimal() else text


def _partitioning(text: str) -> str | list[str] | None:
    if text.strip() in ("hive", "none"):
        return "hive" if text.strip() == "hive" else None
    return _names(text)


_OPTIONS = [
    click.argument("paths", metavar="PATH...", nargs=-1, required=True),
    click.option(
        "--columns",
        type=_names,
        metavar="NAMES",
        help="Columns to read: a,b,c, or a JSON list. They decide how large windows are, "
        "and so the order: give those that training reads.",
    ),
    click.option(
        "--filters",
        type=_literal(list, tuple),
        metavar="CONDITIONS",
        help='Rows to keep, in JSON or Python: \'[["day", ">=", "2026-01-01"]]\'; a list '
        "of such lists joins them by or. Dates and times are written as text.",
    ),
    click.option("--batch-size", type=click.IntRange(1), help="Rows for each rank."),
    click.option("--shuffle/--no-shuffle", default=None, help="Mix rows."),
    click.option("--seed", type=int, help="For the mixing."),
    click.option(
        "--shuffle-window",
        type=_amount,
        metavar="AMOUNT",
        help='Rows (a number) or decoded bytes ("64 MiB") that are mixed together.',
    ),
    click.option("--num-splits", type=click.IntRange(1), help="Cuts of the epoch."),
    click.option(
        "--uneven",
        type=click.Choice(["pad", "drop", "exact"]),
        help="What becomes of rows that the ranks cannot share evenly.",
    ),
    click.option(
        "--drop-last",
        is_flag=True,
        default=None,
        help="Leave off the last global batch unless it is whole.",
    ),
    click.option("--epoch", type=click.IntRange(0), default=0, show_default=True),
    click.option(
        "--world-size",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Ranks that share the rows.",
    ),
    click.option(
        "--client",
        default="threads",
        show_default=True,
        help='Who reads: "threads", or the address of a Dask scheduler.',
    ),
    click.option(
        "--memory-limit",
        type=_amount,
        metavar="AMOUNT",
        help='Decoded bytes of one rank: "1 GiB".',
    ),
    click.option(
        "--storage-options",
        type=_literal(dict, is_secret=True),
        metavar="OPTIONS",
        help="For fsspec, in JSON or Python; @FILE for a file that holds them: other users "
        "of this machine see a command line.",
    ),
    click.option(
        "--partitioning",
        type=_partitioning,
        default="hive",
        show_default=True,
        metavar="KEYS",
        help='What directories say: "hive" (year=2026/), "none", or the names of keys '
        "whose directories hold values alone: year,month.",
    ),
    click.option(
        "--schema",
        metavar="FILE",
        help="A Parquet file whose columns are the dataset's, such as _common_metadata; "
        "what a file lacks of them is null there.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
]


def common_options(command: Command) -> Command:
    """Add PATH and the options that say how a dataset is read."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextmanager
def named_errors() -> Iterator[None]:
    """Let errors of ours end the command with one line on stderr and exit code 1."""
    try:
        yield
    except DaskLoaderError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
