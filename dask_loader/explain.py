"""A plan in words: what is read, in which order, how well it is mixed, what would help.

Numbers in, text out. Nothing is read, and no epoch counted.
"""

from __future__ import annotations

import numpy as np

from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.provenance import public_path
from dask_loader.options import DatasetOptions
from dask_loader.plan.order import row_line
from dask_loader.plan.quality import Quality, quality_of
from dask_loader.plan.window import planned_reads
from dask_loader.run import Run, groups_of, window_bytes
from dask_loader.units import format_bytes

# Below this part of what a full shuffle gives, it is said what would help. Where a batch
# is worth half of the row groups that are possible, shares of labels are close: they
# deviate by sqrt(2) times as much.
_WELL_MIXED = 0.5
# Files that cannot be read are named up to this number.
_MAX_NAMED = 10


def explain(
    catalog: Catalog,
    options: DatasetOptions,
    run: Run,
    *,
    reader: str,
    transform: str | None = None,
) -> str:
    """Describe a rank's run in a few lines.

    Args:
        catalog: The row groups.
        options: Of the dataset.
        run: One epoch of one rank.
        reader: Who reads, for people.
        transform: What is done to the rows, for people.
    """
    return "\n".join(
        [
            *_data_lines(catalog),
            *_order_lines(catalog, options, run),
            *([] if transform is None else [transform]),
            f"read by: {reader}",
        ]
    )


def _data_lines(catalog: Catalog) -> list[str]:
    unread = catalog.num_kept == 0
    all_rows, left = int(catalog.num_rows.sum()), int(unread.sum())
    lines = [
        f"{catalog.total_rows} rows in {len(catalog.row_group)} row groups of "
        f"{len(catalog.files)} files, {format_bytes(int(catalog.num_bytes.sum()))} "
        "decoded",
        f"row groups: largest {int(catalog.num_rows.max(initial=0))} rows and "
        f"{format_bytes(int(catalog.num_bytes.max(initial=0)))}, {left} never read for "
        f"their statistics or filters ({int(catalog.num_rows[unread].sum())} rows, "
        f"{format_bytes(int(catalog.num_bytes[unread].sum()))})",
    ]
    if catalog.filter_text:
        lines.append(f"filters: {catalog.total_rows} of {all_rows} rows are kept")
        lines += _unread_lines(catalog)
    if catalog.skipped:
        named = ", ".join(
            repr(public_path(path)) for path, _ in catalog.skipped[:_MAX_NAMED]
        )
        more = len(catalog.skipped) - _MAX_NAMED
        lines.append(
            f"left out as they cannot be read: {len(catalog.skipped)} files, {named}"
            + (f" and {more} more" if more > 0 else "")
        )
    return lines


def _unread_lines(catalog: Catalog) -> list[str]:
    """Say what filters spare, by how it is known that nothing of it is kept."""
    by_keys = np.isin(catalog.file_index, catalog.ruled_out)
    by_statistics = ~by_keys & ~catalog.may_keep & (catalog.num_rows > 0)
    counted = (catalog.num_kept == 0) & ~by_keys & catalog.may_keep
    counted &= catalog.num_rows > 0
    lines = []
    for how, which in (
        ("by the keys of their directories", by_keys),
        ("by statistics", by_statistics),
        (
            "as the filters keep none of their rows, for which only the filters' columns "
            "were read once",
            counted,
        ),
    ):
        if which.any():
            files = np.unique(catalog.file_index[which])
            others = np.unique(catalog.file_index[~which])
            whole = len(np.setdiff1d(files, others))
            lines.append(
                f"never read {how}: {int(which.sum())} row groups, {whole} whole files, "
                f"{int(catalog.num_rows[which].sum())} rows, "
                f"{format_bytes(int(catalog.num_bytes[which].sum()))}"
            )
    return lines


def _order_lines(catalog: Catalog, options: DatasetOptions, run: Run) -> list[str]:
    deal, world = run.deal, run.world
    size = window_bytes(catalog, options)
    quality = quality_of(run.epoch, deal, world.rank, catalog.num_kept)
    lines = [
        f"order: shuffle={options.shuffle} seed={options.seed} num_splits="
        f"{deal.num_splits} windows of about {format_bytes(size)}",
        f"rank {world.rank} of {world.world_size} ({world.source}): "
        f"{run.num_steps} batches, {run.num_rows} rows, up to "
        f"{deal.splits_in_hand(world.rank)} windows in hand, memory_limit "
        f"{format_bytes(options.memory_bytes)}",
        f"decoding: {_read_ratio(catalog, run):.2f} times the rows, as a row group on the "
        "border of two splits is read by both",
    ]
    if deal.world_size != deal.num_classes:
        lines.append(
            f"advice: {deal.world_size} ranks share {deal.num_splits} splits, so some "
            "windows are read by several ranks; a num_splits that is a multiple of the "
            "ranks avoids it (the order changes)"
        )
    if not quality.rank:  # no batches
        return lines
    lines.append(_mixing(run, quality))
    if options.shuffle and quality.rank < _WELL_MIXED * quality.rank_at_best:
        lines.append(_mixing_advice(catalog, options, quality))
    return lines


def _read_ratio(catalog: Catalog, run: Run) -> float:
    order, kept = run.epoch.order, catalog.num_kept
    line = row_line(
        kept, shuffle=order.shuffle, seed=order.seed, epoch=run.epoch.number
    )
    reads = planned_reads(np.cumsum(kept[line]), num_splits=run.deal.num_splits)
    return reads / max(1, catalog.total_rows)


def _mixing(run: Run, quality: Quality) -> str:
    deal = run.deal
    text = (
        "mixing, if all rows of a row group were alike: a batch of "
        f"{min(deal.batch_size, deal.num_rows)} rows is worth {_number(quality.rank)} row "
        f"groups, a full shuffle's {_number(quality.rank_at_best)}"
    )
    if deal.world_size > 1:
        text += (
            f"; the batches of all ranks together {_number(quality.all_ranks)}, a full "
            f"shuffle's {_number(quality.all_at_best)}"
        )
    return text


def _mixing_advice(catalog: Catalog, options: DatasetOptions, quality: Quality) -> str:
    num_groups = int((catalog.num_kept > 0).sum())
    group_bytes = max(1, groups_of(catalog).kept_bytes // max(1, num_groups))
    # Half of the memory is for the windows that are read ahead.
    room = options.memory_bytes / catalog.growth / 2
    within = max(quality.rank, room / group_bytes)
    text = (
        "advice: if the files are sorted (by date, user, label), that is little mixing; if "
        "each row group is a random sample already, it does not matter. A larger "
        "shuffle_window or more num_splits mix more, as far as memory_limit holds their "
        f"windows: with {format_bytes(options.memory_bytes)}, a batch can be worth about "
        f"{_number(min(within, quality.rank_at_best))} row groups"
    )
    if within < _WELL_MIXED * quality.rank_at_best:
        text += (
            ". Nothing within it mixes rows that are sorted by label: raise memory_limit, "
            "or write the files anew once, in random order"
        )
    return text


def _number(groups: float) -> str:
    return f"{groups:.1f}" if groups < 100 else f"{groups:.0f}"
