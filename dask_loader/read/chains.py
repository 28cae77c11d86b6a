"""Row groups larger than a window, decoded once for all the windows of a split.

The windows of such a row group follow each other. A chain keeps, for each bundle of
columns, a cursor: a reader that stands where the last window ended. So the row group is
decoded once and never held whole: a cursor holds the pages it is at and the rest of one
small batch.

Windows are read by several threads at once. Each announces its rows first, in order, and
waits at a cursor for those before it: one thread decodes the first columns of a window
while another decodes the last columns of the window before.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pyarrow as pa

from dask_loader.catalog.forms import Form
from dask_loader.errors import BadFileError, StorageError
from dask_loader.read.checksums import unchecked_rows
from dask_loader.read.files import OpenFiles, decode_error, look_again, trim
from dask_loader.read.pieces import kept_tables, open_slice, require_rows
from dask_loader.read.task import ReadOptions, SliceTask, WindowTask

# A chain holds a page and part of a batch of each of its columns: measured with 45 columns
# and pages of 1 MiB, half as much again for what the allocator keeps.
CHAIN_BYTES = 64 << 20
# More chains are read at once only where a rank has more splits in huge row groups; the
# one whose use lies longest back is decoded anew if its turn comes.
_MAX_CHAINS = 8
# Ends of streams that are remembered, for tasks that begin a moment later.
_MAX_ENDED = 64
# Rows that a cursor decodes at once take about this much: what is left of a batch when a
# window ends waits for the next window.
_BATCH_BYTES = 2 << 20
_MAX_BATCH_ROWS = 1 << 16
# Nobody waits so long for the thread before it: it decodes, or its storage's deadlines
# end it.
_LOOK_AROUND_S = 1.0

# Columns that are decoded together.
Bundles = list[tuple[Form, ...]]


class Chains:
    """The chains of one process. Thread-safe."""

    def __init__(self, files: OpenFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._chains: OrderedDict[str, Chain] = OrderedDict()
        self._ended: deque[str] = deque(maxlen=_MAX_ENDED)

    def __len__(self) -> int:
        return len(self._chains)

    def enter(self, task: WindowTask) -> Chain | None:
        """Announce that a window will be read; None where it is no part of a chain.

        Windows of a chain are announced in their order, each before it is read.
        """
        if task.chain is None:
            return None
        surplus: list[Chain] = []
        with self._lock:
            chain = self._chains.get(task.chain)
            if chain is None:
                chain = self._chains[task.chain] = Chain(self._files)
                # A task that was under way when its stream ended: nothing goes on with it.
                chain.has_ended = task.chain.startswith(tuple(self._ended))
            self._chains.move_to_end(task.chain)
            chain.announce(task.slices[0])
            idle = [k for k, c in self._chains.items() if not c.is_busy]
            for key in idle[: max(0, len(self._chains) - _MAX_CHAINS)]:
                surplus.append(self._chains.pop(key))
        for old in surplus:
            old.close()
        return chain

    def leave(self, task: WindowTask) -> None:
        """Say that a window was read, or will never be. Safe twice."""
        if task.chain is None:
            return
        with self._lock:
            chain = self._chains.get(task.chain)
            if chain is None:
                return
            chain.retract(task.slices[0])
            chain.has_ended |= not task.continues
            if chain.is_busy or not chain.has_ended:
                return
            del self._chains[task.chain]
        chain.close()

    def end(self, prefix: str) -> None:
        """Close the chains whose names begin so, each when nobody reads it any more."""
        with self._lock:
            self._ended.append(prefix)
            ended = [key for key in self._chains if key.startswith(prefix)]
            for key in ended:
                self._chains[key].has_ended = True
            idle = [k for k in ended if not self._chains[k].is_busy]
            chains = [self._chains.pop(key) for key in idle]
        for chain in chains:
            chain.close()

    def drop_idle(self, older_than_s: float = 0.0) -> None:
        """Close the chains that nobody has used for so long."""
        before = time.monotonic() - older_than_s
        with self._lock:
            old = [
                key
                for key, chain in self._chains.items()
                if not chain.is_busy and chain.last_used_s <= before
            ]
            chains = [self._chains.pop(key) for key in old]
        for chain in chains:
            chain.close()

    def close(self) -> None:
        """Close all chains, also those whose windows were announced and given up.

        Nobody may be reading.
        """
        with self._lock:
            chains = list(self._chains.values())
            self._chains.clear()
        for chain in chains:
            chain.close()


class Chain:
    """The cursors over one row group, one for each bundle of columns."""

    def __init__(self, files: OpenFiles) -> None:
        self._files = files
        self._changed = threading.Condition()
        self._announced: list[int] = []  # first rows of windows not yet read
        self._cursors: dict[int, _Cursor] = {}
        self._bundles: Bundles | None = None
        self._is_checked = True
        self.last_used_s = time.monotonic()
        self.has_ended = False

    @property
    def is_busy(self) -> bool:
        """Whether a window is announced."""
        return bool(self._announced)

    def announce(self, piece: SliceTask) -> None:
        """See Chains.enter."""
        with self._changed:
            self._announced.append(piece.start)

    def retract(self, piece: SliceTask) -> None:
        """See Chains.leave."""
        with self._changed:
            self.last_used_s = time.monotonic()
            if piece.start in self._announced:
                self._announced.remove(piece.start)
            self._changed.notify_all()

    def bundles(self, found: Bundles) -> Bundles:
        """Return the bundles of the chain's first window, whatever this one's are.

        Windows differ by a row, which may make another bundle; the cursors stay.
        """
        with self._changed:
            if self._bundles is None:
                self._bundles = found
            return self._bundles

    def tables(
        self, options: ReadOptions, piece: SliceTask, bundle: int, forms: Sequence[Form]
    ) -> Iterator[pa.Table]:
        """Yield a window's kept rows of one bundle as tables, in order.

        Raises:
            DataChangedError: The file is not the one that was planned.
            BadFileError: It cannot be decoded, or rows are missing.
        """
        cursor = self._take(bundle, piece.start)
        if cursor is None:
            cursor = _Cursor(self._files, options, piece, forms)
        try:
            yield from cursor.read(piece)
            self._is_checked = cursor.is_checked
        except BaseException as error:
            cursor.close()
            if isinstance(error, BadFileError):
                # What cannot be read may be another file; see OpenFiles.borrow.
                options.storage.check(piece.path, piece.stamp)
            raise
        finally:
            self._give_back(bundle, cursor)

    def unchecked_rows(self, piece: SliceTask) -> int:
        """Return how many of a slice's rows nothing verified; once they were read."""
        return 0 if self._is_checked else piece.stop - piece.start

    def close(self) -> None:
        """Close the cursors; nobody may be reading."""
        with self._changed:
            cursors, self._cursors = list(self._cursors.values()), {}
        for cursor in cursors:
            cursor.close()

    def _take(self, bundle: int, start: int) -> _Cursor | None:
        with self._changed:
            while self._is_awaited(bundle, start):
                self._changed.wait(_LOOK_AROUND_S)
            cursor = self._cursors.get(bundle)
            if cursor is None or cursor.position > start:
                return None  # a window that is read a second time, after a fault
            return self._cursors.pop(bundle)

    def _is_awaited(self, bundle: int, start: int) -> bool:
        if not any(other < start for other in self._announced):
            return False
        cursor = self._cursors.get(bundle)
        return cursor is None or cursor.position < start

    def _give_back(self, bundle: int, cursor: _Cursor) -> None:
        with self._changed:
            known = self._cursors.get(bundle)
            if cursor.is_open and (known is None or known.position < cursor.position):
                self._cursors[bundle], cursor = cursor, known  # type: ignore[assignment]
            self._changed.notify_all()
        if cursor is not None:
            cursor.close()


class _Cursor:
    """Reads some columns of one row group from its first row to its last."""

    def __init__(
        self,
        files: OpenFiles,
        options: ReadOptions,
        piece: SliceTask,
        forms: Sequence[Form],
    ) -> None:
        self.position = 0  # kept rows read
        self.is_open = True
        self._stack = ExitStack()
        row_bytes = max(1, sum(form.row_bytes for form in forms))
        # Each window looks at the file; giving up what no window needs must not fail.
        opened = open_slice(files, options, piece, looks_after=False)
        self._file = self._stack.enter_context(opened)
        self._tables = kept_tables(
            self._file,
            piece,
            options,
            forms,
            max_rows=max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // row_bytes)),
        )
        self._files = files
        self._options = options
        self._rest: pa.Table | None = None
        self.is_checked = True  # known once some rows were read

    def read(self, piece: SliceTask) -> Iterator[pa.Table]:
        """Yield rows [start, stop); rows before them are decoded and dropped."""
        if self._options.storage.is_local:
            self._options.storage.check(piece.path, piece.stamp)
        while self.position < piece.stop:
            table = self._rest if self._rest is not None else next(self._tables, None)
            if table is None:
                require_rows(piece, self.position)
                raise AssertionError("require_rows raises")
            low = max(piece.start - self.position, 0)
            high = min(piece.stop - self.position, table.num_rows)
            self._rest = table.slice(high) if high < table.num_rows else None
            if not self.position:
                self.is_checked = not unchecked_rows(self._file, piece, self._options)
            self.position += high
            if low < high:
                yield table.slice(low, high - low)
        # What was read for this window must be of one version; see OpenFiles.borrow.
        try:
            look_again(self._file, self._options.storage, piece.path, piece.stamp)
        except StorageError as error:
            raise decode_error(piece.path, piece.row_group, error) from None
        trim(self._file)

    def close(self) -> None:
        """Give the file back. Safe twice."""
        self.is_open = False
        self._rest = None
        self._tables.close()
        self._stack.close()
