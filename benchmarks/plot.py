"""Draw a run: for each set and order the rates beside LIMIT's, as bars.

python benchmarks/plot.py results.json results.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from field import LIMIT, OURS

_OURS, _PLAIN, _PEER = "#1f6fb4", "#8c8c8c", "#d98032"
_NOT_MIXED = 0.5  # share of neighbours from which a shuffle is drawn hatched
_ROW_INCHES, _WIDTH_INCHES = 0.27, 15.0


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw what run.py reports into a PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    results = report["results"]
    sets = [*dict.fromkeys(r["set"] for r in results)]
    orders = [*dict.fromkeys(r["shuffle"] for r in results)]
    most = {s: max(_count(results, s, order) for order in orders) for s in sets}
    figure, grid = pyplot.subplots(
        len(sets),
        len(orders),
        figsize=(
            _WIDTH_INCHES,
            sum(_ROW_INCHES * n + 0.9 for n in most.values()) + 0.8,
        ),
        height_ratios=[most[s] + 2 for s in sets],
        squeeze=False,
        layout="constrained",
    )
    for axes_of_set, set_name in zip(grid, sets, strict=True):
        for axes, order in zip(axes_of_set, orders, strict=True):
            chosen = [
                r for r in results if (r["set"], r["shuffle"]) == (set_name, order)
            ]
            _bars(axes, chosen)
            facts = report["sets"][set_name]
            axes.set_title(
                f"{set_name}, {'shuffled' if order else 'sequential'}: "
                f"{facts['rows']:,} rows, {facts['decoded_bytes'] / 1e9:.2f} GB",
                fontsize=10,
                loc="left",
            )
    facts = report["machine"]
    figure.suptitle(
        "Rows/s beside LIMIT (decoding alone, all cores, = 1); lines: least and most. "
        "Shuffled: row groups that a batch has rows of; hatched where most neighbours "
        f"stay.\n{facts['cores']} cores, {facts['cpu']}; "
        f"{facts.get('commit', '')}",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _count(results: list[dict[str, Any]], set_name: str, order: bool) -> int:
    return sum((r["set"], r["shuffle"]) == (set_name, order) for r in results)


def _bars(axes: Any, results: list[dict[str, Any]]) -> None:
    names = {entry.name for entry in OURS}
    shown = [r for r in results if r["contestant"] != LIMIT]
    # Fastest at the top, those without a rate at the bottom.
    shown.sort(key=lambda r: r.get("of_limit", -1.0))
    for place, result in enumerate(shown):
        if "of_limit" not in result:
            text = f" {result['status']}: {result['error']}"
            axes.text(0, place, text[:70], va="center", fontsize=7, color="#a02020")
            continue
        ratio = result["of_limit"]
        scale = ratio / result["rows_s"]
        plain = result["contestant"].startswith("plain")
        ours = result["contestant"] in names
        mixing = result["mixing"] or {}
        unmixed = result["shuffle"] and mixing.get("neighbours", 0) > _NOT_MIXED
        axes.barh(
            place,
            ratio,
            color=_PLAIN if plain else _OURS if ours else _PEER,
            hatch="///" if unmixed else None,
            edgecolor="white",
        )
        ends = [result["rows_s_least"] * scale, result["rows_s_most"] * scale]
        axes.plot(ends, [place, place], color="black", linewidth=1)
        label = f" {ratio:.2f}"
        if result["shuffle"] and mixing:
            label += f"  ({mixing['row_groups_per_batch']:.1f} row groups)"
        axes.text(max(ends), place, label, va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(shown)), [r["contestant"] for r in shown], fontsize=8)
    axes.set_xlim(0, 1.25 * max([1.0, *(r.get("of_limit", 0) for r in shown)]))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
