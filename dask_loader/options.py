"""What a dataset was asked for, checked on construction. Defaults live here only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dask_loader.catalog.formats import OutputFormat
from dask_loader.errors import ConfigError, PlanError
from dask_loader.plan.share import Uneven
from dask_loader.units import format_bytes, parse_bytes, parse_seconds

OnError = Literal["raise", "skip-window"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetOptions:
    """The options that need no data to be checked. See ParquetDataset for their meaning."""

    batch_size: int | None = 1024
    shuffle: bool = False
    seed: int = 0
    shuffle_window: int | str = "64 MiB"
    drop_last: bool = False
    uneven: Uneven = "pad"
    num_splits: int | None = None
    memory_limit: int | str = "1 GiB"
    worker_timeout: float | str = "60 s"
    window_timeout: float | str = "15 min"
    rank_timeout: float | str = "5 min"
    verify_checksums: bool = True
    footer_cache: bool | str | os.PathLike[str] = True
    on_error: OnError = "raise"
    provenance: bool = False
    output_format: OutputFormat = "torch"

    def __post_init__(self) -> None:
        """Check each option, and those that depend on each other.

        Raises:
            ConfigError: One is wrong; the text has its value.
        """
        if self.batch_size is not None:
            _require_positive("batch_size", self.batch_size, "rows, or None for rows")
        for name in ("shuffle", "drop_last", "verify_checksums", "provenance"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r} must be True or False")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed={self.seed!r} must be a whole number")
        if isinstance(self.shuffle_window, str):
            parse_bytes(self.shuffle_window, name="shuffle_window")
        else:
            _require_positive(
                "shuffle_window", self.shuffle_window, 'rows, or text such as "64 MiB"'
            )
        if self.uneven not in get_args(Uneven):
            raise ConfigError(
                f"uneven={self.uneven!r} must be one of {get_args(Uneven)!r}"
            )
        if self.on_error not in get_args(OnError):
            raise ConfigError(
                f"on_error={self.on_error!r} must be one of {get_args(OnError)!r}"
            )
        if self.num_splits is not None:
            _require_positive("num_splits", self.num_splits, "splits, or None")
        if self.drop_last and self.batch_size is None:
            raise ConfigError(
                "drop_last=True needs a batch_size: with batch_size=None rows come one "
                "by one, and torch's DataLoader has a drop_last of its own"
            )
        if not isinstance(self.footer_cache, bool | str | os.PathLike) or (
            self.footer_cache == ""
        ):
            raise ConfigError(
                f"footer_cache={self.footer_cache!r} must be True, False or a folder"
            )
        parse_bytes(self.memory_limit, name="memory_limit")
        parse_seconds(self.worker_timeout, name="worker_timeout")
        parse_seconds(self.window_timeout, name="window_timeout")
        parse_seconds(self.rank_timeout, name="rank_timeout")

    @property
    def memory_bytes(self) -> int:
        """memory_limit in bytes."""
        return parse_bytes(self.memory_limit, name="memory_limit")

    @property
    def worker_timeout_s(self) -> float:
        """worker_timeout in seconds."""
        return parse_seconds(self.worker_timeout, name="worker_timeout")

    @property
    def window_timeout_s(self) -> float:
        """window_timeout in seconds."""
        return parse_seconds(self.window_timeout, name="window_timeout")

    @property
    def rank_timeout_s(self) -> float:
        """rank_timeout in seconds."""
        return parse_seconds(self.rank_timeout, name="rank_timeout")

    @property
    def window(self) -> tuple[int, bool]:
        """shuffle_window as a number, and whether it counts bytes (else rows)."""
        if isinstance(self.shuffle_window, str):
            return parse_bytes(self.shuffle_window, name="shuffle_window"), True
        return self.shuffle_window, False


def check_memory(
    *,
    splits_in_hand: int,
    window_bytes: int,
    memory_bytes: int,
    num_splits: int,
    world_size: int,
) -> None:
    """Refuse a plan that cannot be kept within memory_limit, before the first read.

    Raises:
        PlanError: More windows are in hand at once than fit.
    """
    needed = splits_in_hand * window_bytes
    if needed > memory_bytes:
        raise PlanError(
            f"this rank needs {splits_in_hand} windows of {format_bytes(window_bytes)} "
            f"in hand (num_splits={num_splits} / world_size={world_size}) = "
            f"{format_bytes(needed)}, and memory_limit is {format_bytes(memory_bytes)}; "
            "raise memory_limit, or make num_splits or shuffle_window smaller (the order "
            "changes)"
        )


def _require_positive(name: str, value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be a whole number ({what})")
    if value < 1:
        raise ConfigError(f"{name}={value!r} must be at least 1 ({what})")
