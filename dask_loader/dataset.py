"""ParquetDataset: what a user holds. It checks, plans lazily, and delegates the rest."""

from __future__ import annotations

import os
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, Self

import pyarrow as pa
from torch.utils.data import IterableDataset, get_worker_info

from dask_loader.agree import Agreement
from dask_loader.batch.epochs import Announcement, Start
from dask_loader.batch.formats import arrow_each, numpy_each
from dask_loader.batch.ragged import nest_each
from dask_loader.batch.shared import Outbox, Sent, SentError, forget_slabs
from dask_loader.catalog.delivery import check_delivery
from dask_loader.catalog.discover import discover
from dask_loader.catalog.encryption import check_decryption
from dask_loader.catalog.formats import OutputFormat, check_format
from dask_loader.catalog.layout import check_layout
from dask_loader.catalog.masks import mask_field
from dask_loader.catalog.provenance import FIELDS
from dask_loader.catalog.schema import check_columns
from dask_loader.course import Course
from dask_loader.engine.ahead import Ahead
from dask_loader.engine.where import resolve_client
from dask_loader.engine.worker import run_table
from dask_loader.errors import ClosedError, ConfigError, DaskLoaderError
from dask_loader.explain import explain
from dask_loader.metrics import Meter
from dask_loader.options import DatasetOptions, OnError
from dask_loader.pipeline import Pipeline, make_engine
from dask_loader.plan.local import Part
from dask_loader.plan.schedule import Turn
from dask_loader.plan.share import Uneven
from dask_loader.prepare import load_catalog
from dask_loader.read.transform import Function
from dask_loader.run import ROWS_PER_STEP, Progress, Run
from dask_loader.transfer.slabs import Registry
from dask_loader.transfer.window import WindowData
from dask_loader.world import World, resolve_world


class ParquetDataset(IterableDataset[Any]):
    """Parquet files as batches of tensors, for one rank of a training job.

    Iterating yields dict[str, torch.Tensor]: one tensor of shape (rows, *row shape) for
    each column, rows being batch_size but for the last batch. Numbers keep their dtype,
    dates, times and durations become int64 in their own unit (see schema), fixed-size
    lists become one more dimension. Text and binary columns are lists of str and bytes,
    lists of any length a Ragged. Fields of structs are columns "a.b" of their own, maps
    "m.key" and "m.value".
    Tensors are the caller's: writing into one changes no other batch and no file.

    With batch_size=None it yields single rows, dicts of NumPy scalars, for torch's own
    batching.

    The order depends on the files, columns, filters, shuffle, seed, epoch, num_splits and
    shuffle_window, and on nothing else: not on who reads or how many.

    Args:
        path: A file, a folder, a glob, or a list of these; paths or fsspec URLs. Or
            "folder/_metadata", which has the footers of the folder's files.
        columns: Columns to read, in the batch's order; None for all.
        filters: Rows to keep: [(column, op, value), ...], a list of such lists (or), or a
            pyarrow.compute.Expression. Exact: the rows they keep are counted when the
            dataset is made, and remembered.
        batch_size: Rows for each rank and step; None yields single rows.
        shuffle: Mix rows. The order is a pure function of seed and epoch.
        seed: For shuffle.
        shuffle_window: Rows (int) or decoded bytes (text) that are mixed together and
            read by one task.
        drop_last: Leave off the last global batch unless it is whole.
        uneven: What becomes of a last global batch that the ranks cannot share evenly.
            "pad": fewer than world_size rows come twice. "drop": fewer than world_size
            rows are left off. "exact": every row once; ranks may differ by one batch.
        num_splits: Cuts of the epoch that are read side by side; None chooses.
        rank: This process's, with world_size; else mesh, torch.distributed, RANK and
            WORLD_SIZE, or 0 of 1. Resolved when needed.
        world_size: How many ranks share the rows.
        mesh: A torch DeviceMesh of one dimension or a process group: the data-parallel
            one.
        client: Who reads. None: the active Dask client, else Dask's configured scheduler
            address, else threads of this process. "threads". A scheduler address. A
            distributed.Client or a cluster object, of which address and security are
            taken.
        features: {name: [column, ...]}: these columns arrive as one tensor of shape
            (rows, columns) under the name, at the first one's place. Its dtype is the one
            that NumPy promotes theirs to, or that of dtypes.
        dtypes: {column or feature: dtype} to deliver them in, torch's or NumPy's. Floats
            are rounded; a number that does not fit is an error, never another number.
        nulls: "error"; "nan", for float columns; {column: value}; or "mask": nulls become
            0 or "", and a bool tensor `<column>__valid` tells which rows (or elements of
            fixed-size lists) are none, for each column that may hold nulls by its schema.
            Of lists of any length it tells the rows, and `<column>__items_valid` the
            elements.
        ragged: Lists of any length: "jagged", as Ragged; "nested", as torch.nested tensors
            where they hold numbers; or {column: (length, fill)} for tensors of shape (rows,
            length). A longer list is an error unless (length, fill, "cut") is given.
        vocabulary: {column: True, or a list of all its values}: text, bytes and integers
            are delivered as int32, each value as its place in that list, or in the sorted
            values of all files, which are found by reading the column once, and
            remembered; see the property of the same name.
        output_format: "torch": dicts as above. "numpy": the same with NumPy arrays.
            "arrow": each batch a pyarrow.Table of columns as files have them, nulls and
            nested types included; features, dtypes, nulls, ragged and vocabulary do not
            apply.
        provenance: Add to each batch where its rows came from: `__file__` (list of str, the
            path), `__row_group__` (int32, its number in the file), `__row__` (int64, the
            row's number in the row group, before filtering) and `__padded__` (bool, True
            for copies, of uneven="pad" or on_error). The batches are the same otherwise.
        memory_limit: Decoded bytes that this rank may have under way and in hand.
        verify_checksums: Check the pages' checksums where the files have them; stats()
            counts the rows of the others, `unchecked_rows`.
        worker_timeout: Longest wait for a Dask worker to exist.
        window_timeout: Longest wait for the next window while its Dask worker lives.
        rank_timeout: Longest wait at the begin of an epoch for the other ranks, where
            torch.distributed is initialised: they compare what they are about to read.
        footer_cache: Remember the files' footers, and how many rows filters keep, for the
            next start, in a folder of the user's cache folder or in this one; False for
            not. The environment variable
            DASK_LOADER_FOOTER_CACHE (0, or a folder) says what True means.
        transform: A function that is given a pyarrow.Table with the columns asked for, of
            some rows that the filters kept, and returns a pyarrow.Table of as many rows,
            whose columns are delivered. It runs where rows are decoded. What it makes of
            a row must not depend on other rows. It is tried on the first rows when the
            dataset is made. See docs/transforms.md.
        storage_options: For fsspec.
        partitioning: Directories below `path` as columns. "hive": "day=2026-01-01" gives
            `day`, an int64 where all values are whole numbers, else text. {key: Arrow
            type} says types. A list of names for directories that hold values alone. A
            pyarrow.dataset Hive- or DirectoryPartitioning. None: ignored.
        schema: The dataset's columns as a pyarrow.Schema, in place of the first file's.
            Columns that a file lacks are null there, its others are not read, narrower
            types are widened; see docs/layouts.md.
        on_bad_files: "error", or "skip" to leave out files that are no readable Parquet,
            with a warning that names them. Decided now, never in an epoch.
        on_error: "raise", or "skip-window": rows of another window come again in place of
            those of one that cannot be read, in as many and as large batches. Which were
            skipped is in the log, stats(), `skipped` and the state.
        filesystem: One of fsspec or pyarrow.fs, instead of the path's scheme.
        decryption: For encrypted files: a function that takes a path and returns its
            pyarrow.parquet.encryption.FileDecryptionProperties, or None. It is called in
            each process that opens the file, and must pickle to travel there.

    Raises:
        ConfigError: An argument is wrong.
        DataError: A file is missing, broken, or does not fit the others.
        EngineError: The cluster cannot be reached.
    """

    def __init__(
        self,
        path: Any,
        *,
        columns: list[str] | None = None,
        filters: Any = None,
        batch_size: int | None = 1024,
        shuffle: bool = False,
        seed: int = 0,
        shuffle_window: int | str = "64 MiB",
        drop_last: bool = False,
        uneven: Uneven = "pad",
        num_splits: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        mesh: Any = None,
        client: Any = None,
        features: dict[str, list[str]] | None = None,
        dtypes: dict[str, Any] | None = None,
        nulls: Any = "error",
        ragged: Any = "jagged",
        vocabulary: Any = None,
        output_format: OutputFormat = "torch",
        provenance: bool = False,
        memory_limit: int | str = "1 GiB",
        verify_checksums: bool = True,
        worker_timeout: float | str = "60 s",
        window_timeout: float | str = "15 min",
        rank_timeout: float | str = "5 min",
        footer_cache: bool | str | os.PathLike[str] = True,
        transform: Callable[[pa.Table], pa.Table] | None = None,
        storage_options: dict[str, Any] | None = None,
        partitioning: Any = "hive",
        schema: pa.Schema | None = None,
        on_bad_files: Literal["error", "skip"] = "error",
        on_error: OnError = "raise",
        filesystem: Any = None,
        decryption: Callable[[str], Any] | None = None,
    ) -> None:
        super().__init__()
        self._options = DatasetOptions(
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            shuffle_window=shuffle_window,
            drop_last=drop_last,
            uneven=uneven,
            num_splits=num_splits,
            memory_limit=memory_limit,
            verify_checksums=verify_checksums,
            worker_timeout=worker_timeout,
            window_timeout=window_timeout,
            rank_timeout=rank_timeout,
            footer_cache=footer_cache,
            on_error=on_error,
            provenance=provenance,
            output_format=check_format(
                output_format,
                batch_size=batch_size,
                features=features,
                dtypes=dtypes,
                nulls=None if nulls == "error" else nulls,
                ragged=None if ragged == "jagged" else ragged,
                vocabulary=vocabulary,
            ),
        )
        self._given_world = (rank, world_size, mesh)
        world = resolve_world(rank=rank, world_size=world_size, mesh=mesh)
        chosen = check_columns(columns)
        layout = check_layout(partitioning, schema, on_bad_files)
        delivery = check_delivery(features, dtypes, ragged, vocabulary)
        function = None if transform is None else Function(transform)
        self._where = resolve_client(client)
        keys = check_decryption(decryption)
        found = discover(path, storage_options, filesystem, keys)
        found.storage.require_reach(self._where.address)
        self._announcement: Announcement | None = None
        self._closed = False
        self._meter = Meter()
        self._agreement = self._new_agreement()
        engine = make_engine(self._where, self._options)
        ahead = Ahead(engine, max_bytes=self._options.memory_bytes)
        try:
            self._catalog, self._read_options = load_catalog(
                found,
                self._options,
                engine,
                columns=chosen,
                filters=filters,
                nulls=nulls,
                delivery=delivery,
                layout=layout,
                transform=function,
                # More ranks' splits begin where the number of all rows says.
                ahead=ahead if world.world_size == 1 else None,
            )
        except BaseException:
            ahead.drop()
            engine.close()
            raise
        self._course = Course(self._catalog, self._options)
        self._keep(self._make_pipeline(engine, ahead))

    # ---- what it is -----------------------------------------------------------------

    @property
    def world(self) -> World:
        """This process's rank and world_size."""
        rank, world_size, mesh = self._given_world
        return resolve_world(rank=rank, world_size=world_size, mesh=mesh)

    @property
    def schema(self) -> pa.Schema:
        """The delivered columns in Arrow's types, with units and time zones."""
        transform = self._read_options.transform
        schema = self._catalog.delivered_schema
        if transform is not None:
            schema = transform.schema
        fields = {field.name: field for field in schema}
        for form in self._read_options.forms:
            if form.mask_of:
                fields[form.name] = mask_field(form, schema)
        schema = pa.schema(fields.values())
        return pa.schema([*schema, *FIELDS]) if self._options.provenance else schema

    @property
    def vocabulary(self) -> dict[str, tuple[Any, ...]]:
        """The values of each column that comes as codes: code i is the i-th."""
        found = self._read_options.vocabularies
        return {name: tuple(made.values.to_pylist()) for name, made in found}

    @property
    def num_rows(self) -> int:
        """Rows of the whole dataset after filtering, over all ranks, without pads."""
        return self._catalog.total_rows

    @property
    def batch_size(self) -> int | None:
        """Rows for each rank and step, or None."""
        return self._options.batch_size

    def __len__(self) -> int:
        """Return this rank's batches, or rows with batch_size=None; exact."""
        world = self.world
        deal = self._course.deal(world)
        if self._options.batch_size is None:
            return deal.num_rank_rows(world.rank)
        return deal.num_steps(world.rank)

    def explain(self) -> str:
        """Describe the plan for this rank in a few lines of text.

        What is read and what is left out, the order, how well batches are mixed beside a
        full shuffle's, and what would mix them better. Nothing is read for it.
        """
        run = self._course.plan_next(self.world)
        reader = self._pipeline().engine.name
        transform = self._read_options.transform
        return explain(
            self._catalog,
            self._options,
            run,
            reader=reader,
            transform=None if transform is None else transform.description,
        )

    def stats(self) -> dict[str, float]:
        """Return counts and seconds so far in this process; see metrics.LABELS.

        "wait_share" is the share of "total_s", the time that iterators were open, which
        the consumer spent waiting for windows.
        """
        sums = self._meter.read()
        total = sums["total_s"]
        return {**sums, "wait_share": sums["wait_s"] / total if total else 0.0}

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """What this rank skipped so far, with on_error="skip-window".

        Of each window its "epoch", "what" (its row groups and files, in words) and
        "rows", also from before a resume. A DataLoader worker of torch's own keeps its
        own list.
        """
        return [dict(each) for each in self._course.skipped]

    # ---- iterating ------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one.

        Without it each new iteration is the next epoch, or what an error left of this one.

        A loaded position in that epoch stays; of a loaded epoch that was at its end there
        is nothing left to come.

        Raises:
            ConfigError: It is not a whole number from 0 up.
        """
        self._course.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch, or go on after an error.

        Not a generator, so that all this happens when iter() is called.

        Raises:
            ConfigError: torch's DataLoader would batch these batches again.
            RankMismatchError: Another rank is about to read something else.
            RanksMissingError: Another rank did not begin its epoch in time.
            ClosedError: The dataset was closed.
        """
        self._refuse_double_batching(sys._getframe(1))
        worker = get_worker_info()
        if worker is None:
            progress, turn = self.begin_epoch(), Turn()
        else:
            turn = Turn(worker=worker.id, num_workers=worker.num_workers)
            if self._announcement is not None:
                return self._send_windows(turn, self._announcement.read())
            progress = self._course.begin_in_worker(
                self.world, worker.id, worker.num_workers
            )
        items = self._iterate(progress.run, turn, progress)
        return self._course.count(progress, items, self)

    # ---- going on from where a run stood ----------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where this run stands, after the batch handed out last.

        A small dict of plain values, the same on every rank at the same step. With torch's
        own DataLoader and workers, which read ahead unseen, count your steps and use
        seek(). In a DataLoader worker, which torchdata's StatefulDataLoader asks, and with
        batch_size=None, it is the state of that worker or rank: it fits the same rank,
        world size, batch size and number of workers only. from_stateful_dataloader()
        makes one that fits all.
        """
        here = self._part()
        if here is not None:
            return self._course.part_state(self.world, here)
        return self._course.state(self.world)

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Go on from a state: the next iteration begins there.

        Nothing is read again and skipped. Another world size, batch size, number of
        workers or cluster takes up exactly the rows that are left, in the same order;
        another global batch size makes other batches of them, and is warned of. A dataset
        that was given another num_splits deals the rows left anew, once each, in another
        order, and warns; one that was given none keeps the state's.

        Args:
            state: What state_dict() returned, perhaps by way of JSON.
            strict: With False, what differs without changing the order is a warning: files
                at the same place that were written again with the same sizes and footers;
                other columns, where windows are counted in rows or shuffle=False; another
                seed or shuffle_window with shuffle=False.

        Raises:
            ResumeError: The state is none, or was made from other data, columns, filters,
                shuffle, seed or shuffle_window.
        """
        here = self._part()
        if here is not None:
            self._course.load_part(state, self.world, here, strict=strict)
        else:
            self._course.load(state, self.world, strict=strict)

    def seek(self, epoch: int, step: int) -> None:
        """Make the next iteration begin at a step of an epoch, without reading up to it.

        For loops that count their steps themselves, with any DataLoader.

        Raises:
            ConfigError: The step is not one of the epoch's, or the dataset yields rows.
        """
        self._require_main_process_and_batches()
        self._course.seek(epoch, step, self.world)

    # ---- looking ----------------------------------------------------------------------

    def take(self, num_items: int) -> list[Any]:
        """Return the first batches (or rows) of epoch 0, to look at. Counts no epoch."""
        items = self._iterate(self._course.plan_whole(self.world, 0), Turn())
        try:
            return list(islice(items, num_items))
        finally:
            items.close()

    def peek(self) -> Any:
        """Return the first batch (or row) of epoch 0, or None if there is none."""
        first = self.take(1)
        return first[0] if first else None

    def to_delayed(self, epoch: int = 0) -> list[Any]:
        """Return this rank's windows of an epoch as dask.delayed partitions.

        Each computes to a pyarrow.Table in the columns' own types, nulls left as they are:
        the rows that this rank gets of the window, in their order, pads left out. Over all
        ranks the partitions hold every row of the epoch once (but for what
        uneven="drop" or drop_last leave off).
        """
        from dask.delayed import delayed

        # Dask takes equal names for equal results: no two datasets may share one.
        name = f"read-partition-{uuid.uuid4().hex}"
        make = delayed(run_table, pure=False)
        run = self._course.plan_whole(self.world, epoch)
        return [
            make(task, rows, dask_key_name=(name, run.world.rank, epoch, number))
            for number, (task, rows) in enumerate(self._pipeline().partitions(run))
        ]

    def _iterate(
        self, run: Run, turn: Turn, progress: Progress | None = None
    ) -> Generator[Any, None, None]:
        pipeline = self._pipeline()
        done = progress.num_items if progress else 0
        if self._options.batch_size is not None:
            return self.formatted(pipeline.batches(run, replace(turn, done=done)))
        steps, rows = divmod(done, ROWS_PER_STEP)
        turn = replace(turn, length=run.rows_turn, done=steps)
        return pipeline.rows(run, turn, skip=rows)

    def _part(self) -> Part | None:
        """Return what this process hands out, where it is a part of what the rank does."""
        worker = get_worker_info()
        if worker is None and self._options.batch_size is not None:
            return None
        world = self.world
        return Part(
            items=0,
            rank=world.rank,
            world_size=world.world_size,
            worker=0 if worker is None else worker.id,
            num_workers=0 if worker is None else worker.num_workers,
            batch_size=self._options.batch_size,
        )

    # ---- for dask_loader.DataLoader --------------------------------------------------

    def send_windows(self, announcement: Announcement) -> None:
        """Make this DataLoader worker's copy yield whole windows of what is announced."""
        self._announcement = announcement
        self._outbox = Outbox()

    def begin_epoch(self) -> Progress:
        """Count an epoch that this process or its DataLoader workers will read.

        Raises:
            RankMismatchError: Another rank is about to read something else.
            RanksMissingError: Another rank did not begin its epoch in time.
        """
        world, mesh = self.world, self._given_world[2]
        progress = self._course.begin(world)
        try:
            self._agreement.check(world, mesh, self._course.terms(progress.run))
        except DaskLoaderError:
            self._course.go_on_from(progress)  # this epoch is still to come
            raise
        return progress

    def _new_agreement(self) -> Agreement:
        return Agreement(timeout_s=self._options.rank_timeout_s)

    def batches_of(
        self, run: Run, registry: Registry | None = None
    ) -> Generator[Any, None, None]:
        """Yield a run's batches as this process reads them; not counted.

        With a registry (see Pipeline.batches) they are not for the user.
        """
        return self._pipeline().batches(run, Turn(), registry)

    def formatted(
        self, batches: Generator[Any, None, None]
    ) -> Generator[Any, None, None]:
        """Make of batches what the user wants: torch.nested tensors, NumPy or Arrow."""
        if self._options.output_format == "numpy":
            return numpy_each(batches)
        if self._options.output_format == "arrow":
            return arrow_each(batches, self.schema)
        names = {form.name for form in self._read_options.forms if form.nested}
        return nest_each(batches, names) if names else batches

    @property
    def output_format(self) -> OutputFormat:
        """What batches are made of."""
        return self._options.output_format

    def cut(
        self,
        run: Run,
        take: Callable[[], WindowData],
        registry: Registry | None = None,
    ) -> Generator[Any, None, None]:
        """Yield a run's batches from windows in the order of requests; not counted."""

        def metered() -> WindowData:
            began = time.perf_counter()
            try:
                return take()
            finally:
                self._meter.add("wait_s", time.perf_counter() - began)

        try:
            yield from self._pipeline().cut(run, metered, registry)
        finally:
            forget_slabs()

    def counted(
        self, progress: Progress, batches: Generator[Any, None, None]
    ) -> Generator[Any, None, None]:
        """Hand on a run's batches, counting them for state_dict()."""
        return self._course.count(progress, batches, self)

    def _send_windows(self, turn: Turn, start: Start) -> Iterator[Sent | SentError]:
        try:
            run = self._course.plan(self.world, start)
            for window in self._pipeline().windows(run, turn):
                sent = self._outbox.send(window)
                del window
                yield sent
        except Exception as error:  # the main process raises it, fields and all
            yield SentError(error)

    def _require_main_process_and_batches(self) -> None:
        if get_worker_info() is not None:
            raise ConfigError(
                "seek() was called in a DataLoader worker; call it in the main process "
                "before the workers begin"
            )
        if self._options.batch_size is None:
            raise ConfigError(
                "seek() needs a dataset with a batch_size: with batch_size=None torch's "
                "DataLoader decides which rows make a step"
            )

    def _refuse_double_batching(self, frame: Any) -> None:
        # torch's and torchdata's fetchers call iter() from where this local variable is.
        batched_again = frame.f_locals.get("auto_collation") is True
        if batched_again and self._options.batch_size is not None:
            raise ConfigError(
                "a DataLoader with a batch_size would batch these batches of "
                f"{self._options.batch_size!r} rows again; give the DataLoader "
                "batch_size=None, use dask_loader.DataLoader, or make the dataset with "
                "batch_size=None to have single rows"
            )

    # ---- resources ------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading and let go of threads, files and connections. Safe twice."""
        self._closed = True
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process; keep a rank that others cannot find."""
        if self._own_pipeline is not None:
            self._own_pipeline.drop_ahead()  # the copy will be the one that reads
        state = self.__dict__.copy()
        rank, _, mesh = self._given_world
        world = self.world
        if rank is None and (mesh is not None or world.source == "torch.distributed"):
            state["_given_world"] = (world.rank, world.world_size, None)
        state["_meter"] = state["_agreement"] = None
        state["_pid"] = None
        state["_own_pipeline"] = state["_finalizer"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._meter = Meter()
        self._agreement = self._new_agreement()

    def _pipeline(self) -> Pipeline:
        """Return this process's pipeline; a forked or unpickled dataset makes its own."""
        if self._closed:
            raise ClosedError("this ParquetDataset was closed; make a new one")
        if self._own_pipeline is None or self._pid != os.getpid():
            sends = self._announcement is not None
            engine = make_engine(self._where, self._options, sends_windows=sends)
            self._keep(self._make_pipeline(engine))
        assert self._own_pipeline is not None
        return self._own_pipeline

    def _make_pipeline(self, engine: Any, ahead: Ahead | None = None) -> Pipeline:
        return Pipeline(
            self._catalog,
            self._options,
            self._read_options,
            engine,
            self._meter,
            ahead,
            self._course.note_skipped,
        )

    def _keep(self, pipeline: Pipeline) -> None:
        self._pid: int | None = os.getpid()
        self._own_pipeline: Pipeline | None = pipeline
        self._finalizer: Any = weakref.finalize(self, _close_in, os.getpid(), pipeline)


def _close_in(pid: int, pipeline: Pipeline) -> None:
    # A forked child inherits the finalizer, but its threads and sockets are the parent's.
    if os.getpid() == pid:
        pipeline.close()
