"""DataLoader: torch's own, with whole windows from its workers and batches cut here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import get_worker_info

from dask_loader.batch.epochs import Announcement
from dask_loader.batch.shared import SentError, receive
from dask_loader.dataset import ParquetDataset
from dask_loader.errors import ConfigError
from dask_loader.transfer.window import WindowData


class DataLoader(TorchDataLoader[Any]):
    """Hands out a ParquetDataset's batches.

    num_workers=0 is the fast way: windows are decoded by threads or on the cluster while
    the training step runs. With workers, these read whole windows in turn and batches are
    cut here, so that the batches and their order are the same for any num_workers.

    Args:
        dataset: With a batch_size.
        num_workers: DataLoader worker processes.
        **torch_options: As for torch.utils.data.DataLoader: multiprocessing_context,
            persistent_workers, prefetch_factor (windows), pin_memory, timeout,
            worker_init_fn, ...

    Raises:
        ConfigError: The dataset is not a ParquetDataset with a batch_size, or an option
            would batch or sample again.
    """

    # Accelerate would otherwise share the batches out a second time, and half the rows on
    # two ranks would be lost without a word.
    _is_accelerate_prepared = True

    def __init__(
        self, dataset: ParquetDataset, *, num_workers: int = 0, **torch_options: Any
    ) -> None:
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
        for name in ("batch_size", "shuffle", "drop_last"):
            value = torch_options.pop(name, None)
            if value is not None and value is not False:
                raise ConfigError(
                    f"{name}={value!r} is the dataset's: give it to ParquetDataset"
                )
        for name in ("sampler", "batch_sampler", "collate_fn"):
            value = torch_options.pop(name, None)
            if not (value is None or value is _identity or _is_dummy(value)):
                raise ConfigError(
                    f"{name}={value!r} has no place here: the dataset decides which rows "
                    "make a batch; change batches in your loop, or use "
                    "torch.utils.data.DataLoader(dataset, batch_size=None, ...)"
                )
        self._parquet = dataset
        self._user_init = torch_options.pop("worker_init_fn", None)
        super().__init__(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_identity,
            worker_init_fn=_WorkerInit(self._user_init),
            **torch_options,
        )

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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state at the next iteration; see ParquetDataset."""
        self._parquet.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Begin the next epoch, or go on from a loaded state."""
        if self.num_workers == 0:
            return super().__iter__()
        # Counted here, so that a killed worker cannot get out of step with the others.
        run = self._parquet.begin_epoch()
        init = self.worker_init_fn
        if not self.persistent_workers:  # each iteration has workers of its own
            init = self.worker_init_fn = _WorkerInit(self._user_init)
        assert isinstance(init, _WorkerInit)
        init.announcement.write(run.epoch.number, run.deal.first)
        windows = super().__iter__()

        def take() -> WindowData:
            item = next(windows)
            if isinstance(item, SentError):
                raise item.error
            return receive(item)

        return self._parquet.cut(run, take)


class _WorkerInit:
    """Tells a worker's copy of the dataset to send whole windows. Pickles (spawn)."""

    def __init__(self, user_init: Callable[[int], None] | None) -> None:
        self.announcement = Announcement()
        self._user_init = user_init

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        assert info is not None
        info.dataset.send_windows(self.announcement)  # type: ignore[attr-defined]
        if self._user_init is not None:
            self._user_init(worker_id)


def _is_dummy(sampler: Any) -> bool:
    # What torch gives a loader of an IterableDataset for a sampler. Frameworks that make
    # a loader anew pass it along.
    return type(sampler).__name__ == "_InfiniteConstantSampler"


def _identity(batch: Any) -> Any:
    return batch
