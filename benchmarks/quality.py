"""How well plans mix, against the memory they take. Reckoned from plans; nothing is read.

python benchmarks/quality.py                        # the table of docs/shuffle.md
python benchmarks/quality.py --plot docs/shuffle.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dask_loader.plan.epoch import Epoch, Groups, Order
from dask_loader.plan.quality import Quality, quality_of
from dask_loader.plan.share import Deal

MIB = 1 << 20
# About 29 GiB, as 1,000 row groups of 30 MiB or more and smaller ones.
ROWS, ROW_BYTES = 131_072_000, 240
GROUP_ROWS = (131_072, 16_384, 4_096)
WORLD_SIZE, BATCH_SIZE = 8, 4096
SPLITS_PER_RANK = (1, 2, 4, 8, 16)
WINDOWS_MIB = (16, 32, 64, 128, 256, 512)
# Of the table: windows and splits that a rank may well use.
TABLE = [(1, 64), (1, 512), (4, 64), (8, 64), (8, 128), (16, 64), (16, 32), (8, 512)]
_COLOURS = ("#1f6fb4", "#d98032", "#3a8f4d")
_MARKS = ("o", "s", "D", "^", "v")


@dataclass(frozen=True, slots=True)
class Point:
    """A plan.

    Attributes:
        group_bytes: Decoded bytes of a row group.
        splits: Of one rank.
        window_bytes: Of one window.
        quality: What its batches are worth.
    """

    group_bytes: int
    splits: int
    window_bytes: int
    quality: Quality

    @property
    def in_hand_bytes(self) -> int:
        """Decoded bytes of the windows that a rank cuts batches from."""
        return self.splits * self.window_bytes


def point(group_rows: int, splits: int, window_mib: int) -> Point:
    """Plan an epoch and tell how well it mixes."""
    rows = np.full(ROWS // group_rows, group_rows, dtype=np.int64)
    groups = Groups(num_rows=rows, num_bytes=rows * ROW_BYTES, num_kept=rows)
    order = Order(
        shuffle=True,
        seed=0,
        num_splits=splits * WORLD_SIZE,
        window=window_mib * MIB,
        window_in_bytes=True,
    )
    deal = Deal(
        num_rows=ROWS,
        num_splits=order.num_splits,
        world_size=WORLD_SIZE,
        batch_size=BATCH_SIZE,
    )
    quality = quality_of(Epoch(groups, order, 0), deal, 0, rows)
    return Point(group_rows * ROW_BYTES, splits, window_mib * MIB, quality)


def table() -> str:
    """Return the plans of TABLE as lines of Markdown."""
    sizes = [f"{rows * ROW_BYTES / MIB:.2g} MiB" for rows in GROUP_ROWS]
    heads = [f"{size}: rank | all ranks" for size in sizes]
    lines = [
        "| splits a rank | window | in hand | " + " | ".join(heads) + " |",
        "|---" * (3 + 2 * len(sizes)) + "|",
    ]
    for splits, window in TABLE:
        cells = [str(splits), f"{window} MiB", f"{splits * window} MiB"]
        for group_rows in GROUP_ROWS:
            found = point(group_rows, splits, window).quality
            cells += [_number(found.rank), _number(found.all_ranks)]
        lines.append(f"| {' | '.join(cells)} |")
    cells = ["full shuffle", "", ""]
    for group_rows in GROUP_ROWS:
        best = point(group_rows, 1, 64).quality
        cells += [_number(best.rank_at_best), _number(best.all_at_best)]
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """Draw quality against memory into a PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 4.6), sharex=True, sharey=True, layout="constrained"
    )
    for group_rows, colour in zip(GROUP_ROWS, _COLOURS, strict=True):
        points = [
            point(group_rows, splits, window)
            for splits in SPLITS_PER_RANK
            for window in WINDOWS_MIB
            if splits * window <= 8 * 512
        ]
        _curve(left, points, colour, together=False)
        _curve(right, points, colour, together=True)
    left.set_title(f"a rank's batch of {BATCH_SIZE:,} rows", fontsize=10, loc="left")
    right.set_title(
        f"the batches of {WORLD_SIZE} ranks together", fontsize=10, loc="left"
    )
    left.set_ylabel("row groups that a batch is worth")
    for axes in (left, right):
        axes.set_xlabel("MiB in hand on a rank: splits times window")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(
            [2**n for n in range(4, 13, 2)], [2**n for n in range(4, 13, 2)]
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for splits, mark in zip(SPLITS_PER_RANK, _MARKS, strict=True):
        plural = "s" if splits > 1 else ""
        label = f"{splits} split{plural} a rank"
        left.plot([], [], mark, color="#606060", markersize=5, label=label)
    for group_rows, colour in zip(GROUP_ROWS, _COLOURS, strict=True):
        label = f"row groups of {group_rows * ROW_BYTES / MIB:.2g} MiB"
        right.plot([], [], color=colour, label=label)
    for axes in (left, right):
        axes.legend(fontsize=8, loc="lower right", frameon=False)
    figure.suptitle(
        "Mixing against memory; dashed: a full shuffle. "
        f"{ROWS / 1e6:.0f} million rows of {ROW_BYTES} bytes",
        fontsize=10,
    )
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _curve(axes: Any, points: list[Point], colour: str, *, together: bool) -> None:
    def worth(p: Point) -> float:
        return p.quality.all_ranks if together else p.quality.rank

    best = points[0].quality.all_at_best if together else points[0].quality.rank_at_best
    axes.axhline(best, color=colour, linestyle="--", linewidth=1)
    for splits, mark in zip(SPLITS_PER_RANK, _MARKS, strict=True):
        chosen = [p for p in points if p.splits == splits]
        axes.plot(
            [p.in_hand_bytes / MIB for p in chosen],
            [worth(p) for p in chosen],
            mark,
            color=colour,
            markersize=4,
            linestyle="-",
            linewidth=0.6,
        )


def _number(groups: float) -> str:
    return f"{groups:.1f}" if groups < 100 else f"{groups:,.0f}"


def main() -> None:
    """Print the table, or draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plot", type=Path, help="where to draw it")
    plot = parser.parse_args().plot
    if plot is None:
        print(table())
    else:
        draw(plot)


if __name__ == "__main__":
    main()
