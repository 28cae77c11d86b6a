"""DataLoader: torch's own, with whole windows from its workers and batches cut here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import repeat
from typing import Any

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Sampler, get_worker_info

from dask_loader.batch.device import (
    Backend,
    copy_ahead,
    copy_each,
    make_backend,
    resolve_device,
)
from dask_loader.batch.epochs import Announcement, Start
from dask_loader.batch.pinned import (
    CudaPins,
    PinnedBlocks,
    empty_pinned,
    pin_copy,
)
from dask_loader.batch.shared import SentError, receive
from dask_loader.batch.tensors import Batch
from dask_loader.dataset import ParquetDataset
from dask_loader.errors import ConfigError
from dask_loader.progress import require_rich, show_progress
from dask_loader.run import Run
from dask_loader.transfer.window import WindowData


class DataLoader(TorchDataLoader[Any]):
    """Hands out a ParquetDataset's batches.

    num_workers=0 is the fast way: windows are decoded by threads or on the cluster while
    the training step runs. With workers, these read whole windows in turn and batches are
    cut here, so that the batches and their order are the same for any num_workers.

    With device="cuda" the next batches are copied there while the step runs. They may be
    used on the stream that is current when they are asked for, as if they had been made on
    it. state_dict() counts the batches handed out, not those copied ahead.

    Args:
        dataset: With a batch_size.
        num_workers: DataLoader worker processes.
        pin_memory: Whether host memory is pinned. With a device: what is copied from; None
            is True for CUDA. Without one: the batches handed out, which are copies then;
            None is False.
        device: Where the tensors shall be: "cuda", "cuda:1", a torch.device; None leaves
            them in host memory. Text stays a list.
        prefetch_batches: Batches copied to the device ahead of the one handed out. Asking
            for a batch waits until no more steps than that are queued on the device.
        progress: Draw a progress bar on rank 0's stderr; needs the package rich.
        **torch_options: As for torch.utils.data.DataLoader: multiprocessing_context,
            persistent_workers, prefetch_factor (windows), timeout, worker_init_fn, ...

    Raises:
        ConfigError: The dataset is not a ParquetDataset with a batch_size, an option
            would batch or sample again, the device does not exist, or another argument is
            wrong.
    """

    # Accelerate would otherwise share the batches out a second time, and half the rows on
    # two ranks would be lost without a word.
    _is_accelerate_prepared = True

    def __init__(
        self,
        dataset: ParquetDataset,
        *,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        device: str | torch.device | None = None,
        prefetch_batches: int = 2,
        progress: bool = False,
        **torch_options: Any,
    ) -> None:
        _check_dataset(dataset)
        _check_torch_options(torch_options)
        _check_flags(pin_memory, prefetch_batches, progress)
        found = None if device is None else resolve_device(device)
        _check_tensors(dataset, device=device, pin_memory=pin_memory)
        self._device = None if found is None or found.type == "cpu" else found
        if pin_memory and self._device is None and not _can_pin():
            warnings.warn(
                "pin_memory=True changes nothing here: torch finds no CUDA device to pin "
                "memory for",
                stacklevel=2,
            )
        self._parquet = dataset
        self._backend: Backend | None = None  # made at the first iteration
        self._blocks: PinnedBlocks | None = None
        init = torch_options.pop("worker_init_fn", None)
        # Frameworks that make a loader anew pass ours along.
        self._user_init = init.user_init if isinstance(init, _WorkerInit) else init
        super().__init__(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_identity,
            worker_init_fn=_WorkerInit(self._user_init),
            **torch_options,
        )
        self.sampler: _EpochSampler
        # Past torch's __setattr__, which refuses samplers once it has made one.
        object.__setattr__(self, "sampler", _EpochSampler(dataset))
        # As they were given, under these names: frameworks read them to make it anew.
        self.pin_memory = pin_memory  # type: ignore[assignment]
        self.device = device
        self.prefetch_batches = prefetch_batches
        self.progress = progress

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the dataset's next one."""
        self._parquet.set_epoch(epoch)

    def __len__(self) -> int:
        """Return this rank's batches, exactly.

        Not torch's: it would count what workers send, which are windows, and warn.
        """
        return len(self._parquet)

    def state_dict(self) -> dict[str, Any]:
        """Return where the run stands, by batches handed out; see ParquetDataset."""
        return self._parquet.state_dict()

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Go on from a state at the next iteration; see ParquetDataset."""
        self._parquet.load_state_dict(state, strict=strict)

    def seek(self, epoch: int, step: int) -> None:
        """Begin the next iteration at a step of an epoch; see ParquetDataset."""
        self._parquet.seek(epoch, step)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Begin the next epoch, or go on from a loaded state."""
        return self._of_the_epoch_told(*self._begin())

    def _of_the_epoch_told(
        self, run: Run, batches: Generator[Batch, None, None]
    ) -> Generator[Batch, None, None]:
        """Hand on what was begun, or begin anew if the sampler was told another epoch.

        Lightning calls iter() first and then tells the epoch.
        """
        if self.sampler.told not in (None, run.epoch.number):
            batches.close()
            _, batches = self._begin()
        yield from batches

    def _begin(self) -> tuple[Run, Generator[Batch, None, None]]:
        self.sampler.told = None
        # Counted here, so that a killed worker cannot get out of step with the others.
        progress = self._parquet.begin_epoch()
        run = progress.run
        blocks = self._pinned_blocks()
        if self.num_workers == 0:
            batches = self._parquet.batches_of(run, blocks)
        else:
            batches = self._parquet.cut(run, self._start_workers(run), blocks)
        batches = self._parquet.formatted(self._deliver(batches))
        if self.progress and run.world.rank == 0:
            batches = show_progress(
                batches,
                title=f"epoch {run.epoch.number}",
                num_batches=run.num_steps,
                stats=self._parquet.stats,
            )
        # Outermost, so that what is copied ahead does not count as handed out.
        return run, self._parquet.counted(progress, batches)

    def _start_workers(self, run: Run) -> Callable[[], WindowData]:
        init = self.worker_init_fn
        if not self.persistent_workers:  # each iteration has workers of its own
            init = self.worker_init_fn = _WorkerInit(self._user_init)
        assert isinstance(init, _WorkerInit)
        init.announcement.write(
            Start(run.epoch.number, run.deal.first, run.epoch.stages)
        )
        # torch's thread that pins would be handed windows. Batches are pinned here.
        given, self.pin_memory = self.pin_memory, False
        try:
            windows = super().__iter__()
        finally:
            self.pin_memory = given

        def take() -> WindowData:
            item = next(windows)
            if isinstance(item, SentError):
                raise item.error
            return receive(item)

        return take

    def _deliver(
        self, batches: Generator[Batch, None, None]
    ) -> Generator[Batch, None, None]:
        """Put batches where the user wants them."""
        device = self._device
        if device is None:
            return _pinned(batches) if self.pin_memory and _can_pin() else batches
        backend = self._backend = self._backend or make_backend(device)
        if backend is None:
            return copy_each(batches, device)
        return copy_ahead(
            batches,
            backend,
            num_ahead=self.prefetch_batches,
            blocks=self._pinned_blocks(),
        )

    def _pinned_blocks(self) -> PinnedBlocks | None:
        """Return what is pinned of the memory that batches are joined in, if any is."""
        device = self._device
        if device is None:
            return None
        pins = device.type == "cuda" if self.pin_memory is None else self.pin_memory
        if not pins:
            return None
        if self._blocks is None:
            cuda = device.type == "cuda" and torch.cuda.is_available()
            self._blocks = PinnedBlocks(CudaPins(device) if cuda else None)
        return self._blocks


class _EpochSampler(Sampler[None]):
    """Stands where torch has a dummy sampler: Lightning tells nothing else the epoch.

    Attributes:
        told: The epoch told since an iteration began last, or None.
    """

    def __init__(self, dataset: ParquetDataset) -> None:
        self.told: int | None = None
        self._dataset = dataset

    def __iter__(self) -> Iterator[None]:
        return repeat(None)  # what torch sends its workers for each window

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the one of the next iteration, or of one that gave no batch yet."""
        self._dataset.set_epoch(epoch)
        self.told = epoch


class _WorkerInit:
    """Tells a worker's copy of the dataset to send whole windows. Pickles (spawn)."""

    def __init__(self, user_init: Callable[[int], None] | None) -> None:
        self.announcement = Announcement()
        self.user_init = user_init

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        assert info is not None
        info.dataset.send_windows(self.announcement)  # type: ignore[attr-defined]
        if self.user_init is not None:
            self.user_init(worker_id)


def _check_dataset(dataset: Any) -> None:
    if not isinstance(dataset, ParquetDataset):
        raise ConfigError(
            f"dataset={dataset!r} is not a dask_loader.ParquetDataset; use "
            "torch.utils.data.DataLoader for other datasets"
        )
    if dataset.batch_size is None:
        raise ConfigError(
            "the dataset yields single rows (batch_size=None); give it a batch_size, "
            "or use torch.utils.data.DataLoader(dataset, batch_size=...)"
        )


def _check_torch_options(torch_options: dict[str, Any]) -> None:
    """Refuse options that would batch or sample again; take out the empty ones."""
    for name in ("batch_size", "shuffle", "drop_last"):
        value = torch_options.pop(name, None)
        if value is not None and value is not False:
            raise ConfigError(
                f"{name}={value!r} is the dataset's: give it to ParquetDataset"
            )
    for name in ("sampler", "batch_sampler", "collate_fn"):
        value = torch_options.pop(name, None)
        empty = value is None or value is _identity or _is_dummy(value)
        if not empty and not isinstance(value, _EpochSampler):
            raise ConfigError(
                f"{name}={value!r} has no place here: the dataset decides which rows "
                "make a batch; change batches in your loop, or use "
                "torch.utils.data.DataLoader(dataset, batch_size=None, ...)"
            )


def _check_flags(pin_memory: Any, prefetch_batches: Any, progress: Any) -> None:
    if pin_memory is not None and not isinstance(pin_memory, bool):
        raise ConfigError(f"pin_memory={pin_memory!r} must be True, False or None")
    whole = isinstance(prefetch_batches, int) and not isinstance(prefetch_batches, bool)
    if not whole or prefetch_batches < 1:
        raise ConfigError(
            f"prefetch_batches={prefetch_batches!r} must be a whole number from 1 up"
        )
    if not isinstance(progress, bool):
        raise ConfigError(f"progress={progress!r} must be True or False")
    if progress:
        require_rich()


def _check_tensors(dataset: ParquetDataset, **options: Any) -> None:
    for name, value in options.items():
        if value and dataset.output_format != "torch":
            raise ConfigError(
                f"{name}={value!r} is for tensors, and the dataset gives "
                f"output_format={dataset.output_format!r}; leave one of the two out"
            )


def _can_pin() -> bool:
    return torch.cuda.is_available()


def _pinned(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    with closing(batches):
        for batch in batches:
            yield pin_copy(batch, allocate=empty_pinned)


def _is_dummy(sampler: Any) -> bool:
    # What torch gives a loader of an IterableDataset for a sampler. Frameworks that make
    # a loader anew pass it along, or ours.
    return type(sampler).__name__ == "_InfiniteConstantSampler"


def _identity(batch: Any) -> Any:
    return batch
