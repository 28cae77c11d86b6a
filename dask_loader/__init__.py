"""Parquet in place, read by a Dask cluster, consumed by PyTorch.

Names are loaded when they are first used: a Dask worker imports dask_loader.engine and
dask_loader.read, and needs no torch for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_loader.batch.ragged import Ragged
    from dask_loader.dataset import ParquetDataset
    from dask_loader.errors import (
        BadFileError,
        CastError,
        ClosedError,
        ColumnError,
        ConfigError,
        DaskLoaderError,
        DataChangedError,
        DataError,
        DataNotFoundError,
        DecryptionError,
        EngineError,
        NullError,
        PlanError,
        RankMismatchError,
        RanksMissingError,
        ResumeError,
        SchedulerUnreachableError,
        SchemaError,
        StorageError,
        TransformError,
        UnsupportedTypeError,
        WindowError,
        WorkerEnvironmentError,
        WorkersMissingError,
        WorldError,
    )
    from dask_loader.loader import DataLoader
    from dask_loader.stateful import from_stateful_dataloader

__version__ = "0.1.0"

__all__ = [
    "BadFileError",
    "CastError",
    "ClosedError",
    "ColumnError",
    "ConfigError",
    "DaskLoaderError",
    "DataChangedError",
    "DataError",
    "DataLoader",
    "DataNotFoundError",
    "DecryptionError",
    "EngineError",
    "NullError",
    "ParquetDataset",
    "PlanError",
    "Ragged",
    "RankMismatchError",
    "RanksMissingError",
    "ResumeError",
    "SchedulerUnreachableError",
    "SchemaError",
    "StorageError",
    "TransformError",
    "UnsupportedTypeError",
    "WindowError",
    "WorkerEnvironmentError",
    "WorkersMissingError",
    "WorldError",
    "from_stateful_dataloader",
]

_HOMES = {
    "ParquetDataset": "dask_loader.dataset",
    "DataLoader": "dask_loader.loader",
    "Ragged": "dask_loader.batch.ragged",
    "from_stateful_dataloader": "dask_loader.stateful",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "dask_loader.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
