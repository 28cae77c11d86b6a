"""The user's own function over the rows of a window: shipped, called, held to its word."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import cloudpickle
import pyarrow as pa

from dask_loader.catalog.flat import flatten_table
from dask_loader.errors import ConfigError, TransformError
from dask_loader.read.task import SliceTask

# Functions of several datasets that a Dask worker keeps loaded.
_MAX_LOADED = 8
# Frames of the user's own that an error shows.
_MAX_FRAMES = 6


class Function:
    """A user's function, which pickles by value where it has to.

    In threads it is called as it is. Elsewhere it is loaded once for each process, however
    many tasks bring it.
    """

    def __init__(self, function: Any) -> None:
        """Take a callable.

        Raises:
            ConfigError: It is none.
        """
        if not callable(function):
            raise ConfigError(
                f"transform={function!r} must be a function that takes a pyarrow.Table "
                "and returns one with the same number of rows"
            )
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self._function: Callable[[pa.Table], Any] | None = function
        self._payload: bytes | None = None

    @property
    def payload(self) -> bytes:
        """The function as bytes.

        Raises:
            ConfigError: It cannot be sent to another process.
        """
        if self._payload is None:
            try:
                self._payload = cloudpickle.dumps(self._function)
            except Exception as error:  # whatever the user's objects raise
                raise ConfigError(
                    f"transform={self.name} cannot be sent to the processes that run it "
                    f"({type(error).__name__}: {error}); make what it holds inside the "
                    "function, at its first call"
                ) from error
        return self._payload

    @property
    def key(self) -> str:
        """Text that other functions do not have."""
        return hashlib.blake2b(self.payload, digest_size=16).hexdigest()

    def __call__(self, table: pa.Table) -> Any:
        """Call it.

        Raises:
            TransformError: This process cannot load it.
        """
        if self._function is None:
            assert self._payload is not None
            self._function = _loaded(self.name, self._payload)
        return self._function(table)

    def without_payload(self) -> Function:
        """Return one that travels light, to be bound where it arrives."""
        return _unloaded(self.name, b"")

    def bind(self, function: Callable[[pa.Table], Any]) -> None:
        """Give one without a payload what it calls."""
        self._function = function

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as bytes."""
        return (_unloaded, (self.name, self.payload))


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """What is done to the rows of each piece of a window.

    Attributes:
        function: The user's.
        inputs: The columns that it is given, in order.
        schema: What it returned when the dataset was made, flat.
        row_bytes: Bytes of one row of that.
        loose_row_bytes: The part of them that is in columns without a fixed width.
        own_types: What it returns is delivered in Arrow's own types.
    """

    function: Function
    inputs: tuple[str, ...]
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    row_bytes: int = 1
    loose_row_bytes: int = 0
    own_types: bool = False

    @property
    def text(self) -> str:
        """Name it, for people."""
        return f"transform={self.function.name}"

    @property
    def description(self) -> str:
        """Say what it makes of what, for people."""
        made = ", ".join(f"{field.name} ({field.type})" for field in self.schema)
        return (
            f"{self.text} makes {made} of {', '.join(self.inputs)}: about "
            f"{self.row_bytes} bytes a row"
        )

    def apply(self, table: pa.Table, piece: SliceTask, first: int) -> pa.Table:
        """Return the columns that are made of some rows.

        Args:
            table: The rows; has the inputs, perhaps among others.
            piece: Where they lie, for errors.
            first: The first one's number among the kept rows of its row group.

        Raises:
            TransformError: The function failed, or broke its promise.
        """
        made = self.run(table, piece, first)
        if self.schema.equals(made.schema):
            return made
        columns = []
        for wanted in self.schema:
            found = made.schema.names.count(wanted.name)
            kind = made.schema.field(wanted.name).type if found == 1 else None
            if kind is None or not (kind == wanted.type or pa.types.is_null(kind)):
                got = "no such column" if kind is None else kind
                raise self._error(
                    f"made column {wanted.name!r} as {wanted.type} of the dataset's first "
                    f"rows and as {got} of rows {first} to {first + len(table)}; give "
                    "its columns types of their own, as in pa.array(values, pa.int64())",
                    piece,
                    column=wanted.name,
                )
            columns.append(made.column(wanted.name).cast(wanted.type))
        for name in made.schema.names:
            if name not in self.schema.names:
                raise self._error(
                    f"made a column {name!r} of rows {first} to {first + len(table)} that "
                    "it did not make of the dataset's first rows; return the same columns "
                    "always",
                    piece,
                    column=name,
                )
        return pa.table(columns, schema=self.schema)

    def run(self, table: pa.Table, piece: SliceTask | None, first: int) -> pa.Table:
        """Return what the function makes of some rows, flat, whatever its columns are.

        Raises:
            TransformError: It failed, returned no table, or one of another length.
        """
        given = table.select(self.inputs)
        with self._told(given, piece, first):
            made = self.function(given)
        if isinstance(made, pa.RecordBatch):
            made = pa.Table.from_batches([made])
        if not isinstance(made, pa.Table):
            raise self._error(
                f"returned {type(made).__name__}, not a pyarrow.Table; make one of its "
                "columns with pa.table({...})",
                piece,
            )
        if made.num_rows != given.num_rows:
            raise self._error(
                f"was given {given.num_rows} rows and returned {made.num_rows}; a "
                "transform keeps every row: leave rows out with filters=",
                piece,
            )
        twice = [n for n in made.schema.names if made.schema.names.count(n) > 1]
        if twice:
            raise self._error(f"made two columns called {twice[0]!r}", piece)
        if not made.num_columns:
            raise self._error("made no column; return at least one", piece)
        made = made.replace_schema_metadata(None)
        if self.own_types:
            return made
        with self._told(None, piece, first):
            return flatten_table(made)

    @contextmanager
    def _told(
        self, given: pa.Table | None, piece: SliceTask | None, first: int
    ) -> Iterator[None]:
        """Say of an error where it was."""
        try:
            yield
        except TransformError:
            raise
        except Exception as error:  # the user's own
            rows, found = self._narrow(given, first, error)
            raise self._error(
                f"failed on {rows}: {type(found).__name__}: {found}\n{_frames(found)}",
                piece,
            ) from found

    def _narrow(
        self, given: pa.Table | None, first: int, error: Exception
    ) -> tuple[str, Exception]:
        """Find the row that an error is about, by halves; the last error with it."""
        while given is not None and given.num_rows > 1:
            half = given.num_rows // 2
            for start, part in ((0, given.slice(0, half)), (half, given.slice(half))):
                try:
                    self.function(part)
                except Exception as found:
                    given, first, error = part, first + start, found
                    break
            else:
                break  # only these rows together
        if given is None:
            return "what it returned", error
        if not given.num_rows:
            return "an empty table", error
        if given.num_rows == 1:
            return f"row {first}", error
        return f"rows {first} to {first + given.num_rows}", error

    def _error(
        self, what: str, piece: SliceTask | None, column: str | None = None
    ) -> TransformError:
        if piece is None:
            return TransformError(
                f"{self.text}, tried on no rows, {what}", column=column
            )
        return TransformError(
            f"{self.text} on row group {piece.row_group} of {piece.path!r} (rows are "
            f"counted after filters) {what}",
            path=piece.path,
            row_group=piece.row_group,
            column=column,
        )


class Sample(NamedTuple):
    """What a transform made of a dataset's first rows.

    Attributes:
        schema: Flat.
        column_bytes: Bytes of one row of each column, rounded up.
        depends: Whether the first row came out otherwise with others beside it.
    """

    schema: pa.Schema
    column_bytes: tuple[int, ...]
    depends: bool


def sample_of(transform: Transform, table: pa.Table, piece: SliceTask | None) -> Sample:
    """Try a transform.

    Args:
        transform: Without a schema yet.
        table: A few rows, or none.
        piece: Where they lie; None if there are none.

    Raises:
        TransformError: It failed, or broke its promise.
    """
    made = transform.run(table, piece, 0)
    num_rows = max(1, made.num_rows)
    sizes = tuple(-(-column.nbytes // num_rows) for column in made.columns)
    depends = False
    if made.num_rows > 1:
        alone = transform.run(table.slice(0, 1), piece, 0)
        # As text, in which NaN equals NaN.
        depends = str(alone.to_pylist()) != str(made.slice(0, 1).to_pylist())
    return Sample(made.schema, sizes, depends)


def _unloaded(name: str, payload: bytes) -> Function:
    function = Function.__new__(Function)
    function.name = name
    function._function, function._payload = None, payload
    return function


def load_function(function: Function) -> Callable[[pa.Table], Any]:
    """Return what a Function that has travelled calls, the same one each time.

    It is given whole, not as bytes, which Dask would print with the task.

    Raises:
        TransformError: This process cannot load it.
    """
    return _loaded(function.name, function.payload)


def _loaded(name: str, payload: bytes) -> Callable[[pa.Table], Any]:
    try:
        function: Callable[[pa.Table], Any] = _load(payload)
    except Exception as error:  # whatever its modules raise
        raise TransformError(
            f"transform={name} cannot be loaded where it is to run "
            f"({type(error).__name__}: {error}); install its modules on the Dask workers, "
            "or send them along with cloudpickle.register_pickle_by_value(module)"
        ) from error
    return function


@lru_cache(maxsize=_MAX_LOADED)
def _load(payload: bytes) -> Any:
    return cloudpickle.loads(payload)


def _frames(error: BaseException) -> str:
    """Return the user's part of a traceback, as text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__]
    return "".join(traceback.format_list(own[-_MAX_FRAMES:])).rstrip()
