"""Rounds to results: medians, ratios, a table. Pure, but for the machine's facts."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from field import LIMIT

Round = dict[str, Any]


def rows_per_s(answer: Round) -> float:
    """Return the rate past the rows that are left out."""
    rows = answer["rows"] - answer["skipped_rows"]
    return float(rows / max(1e-9, answer["seconds"] - answer["skipped_s"]))


def summarise(rounds: list[Round], *, bytes_per_row: float) -> dict[str, Any]:
    """Return the medians of timed rounds.

    Args:
        rounds: What the contestant answered, with tree_cpu_s and others_cpu_s.
        bytes_per_row: Decoded.

    Returns:
        rows_s (with its least and most), gb_s, seconds to the first batch, CPU seconds
        per decoded GB of the consumer and of its whole tree, and others_cpu: CPU seconds
        that were spent outside the tree for each second, by which the run was disturbed.
    """

    def median(value: Callable[[Round], float]) -> float:
        return statistics.median(value(r) for r in rounds)

    rates = [rows_per_s(r) for r in rounds]
    rate = statistics.median(rates)
    return {
        "rows_s": rate,
        "rows_s_least": min(rates),
        "rows_s_most": max(rates),
        "gb_s": rate * bytes_per_row / 1e9,
        "first_batch_s": median(lambda r: r["first_batch_s"]),
        "consumer_cpu_s_gb": median(
            lambda r: r["cpu_s"] / (r["rows"] * bytes_per_row / 1e9)
        ),
        "tree_cpu_s_gb": median(
            lambda r: r["tree_cpu_s"] / (r["rows"] * bytes_per_row / 1e9)
        ),
        "others_cpu": median(lambda r: r["others_cpu_s"] / r["seconds"]),
        "whole": all(r["whole"] for r in rounds),
    }


def add_ratios(results: list[dict[str, Any]]) -> None:
    """Add of_limit, the rate beside LIMIT's of the same set and order."""
    limits = {
        (r["set"], r["shuffle"]): r["rows_s"]
        for r in results
        if r["contestant"] == LIMIT and r["status"] == "ok"
    }
    for result in results:
        limit = limits.get((result["set"], result["shuffle"]))
        if limit and result["status"] == "ok":
            result["of_limit"] = result["rows_s"] / limit


def full_shuffle_row_groups(manifest: dict[str, Any]) -> float:
    """Return how many row groups a batch of a full shuffle has rows of, on average."""
    groups, rows = manifest["row_groups"], manifest["batch_rows"]
    return float(groups * (1 - (1 - 1 / groups) ** rows))


def table(results: list[dict[str, Any]]) -> str:
    """Return one set and order as text, fastest first."""
    lines = [
        f"{'':38} {'rows/s':>11} {'[least - most]':>23} {'of':>6} {'CPU s/GB':>13} "
        f"{'first':>7} {'PSS MB':>12} {'neigh-':>7} {'groups':>7} {'others':>7}",
        f"{'':38} {'':11} {'':23} {'LIMIT':>6} {'consumer/all':>13} "
        f"{'batch s':>7} {'consumer/all':>12} {'bours':>7} {'/batch':>7} {'CPU':>7}",
    ]
    good = [r for r in results if r["status"] == "ok"]
    for r in sorted(good, key=lambda r: -r["rows_s"]):
        mixing = r["mixing"] or {"neighbours": float("nan")}
        memory = r["memory"]
        lines.append(
            f"{r['contestant']:38} {r['rows_s']:11,.0f} "
            f"[{r['rows_s_least']:10,.0f} -{r['rows_s_most']:10,.0f}] "
            f"{r.get('of_limit', float('nan')):6.2f} "
            f"{r['consumer_cpu_s_gb']:6.2f}/{r['tree_cpu_s_gb']:6.2f} "
            f"{r['first_batch_s']:7.3f} "
            f"{memory['consumer_peak_pss'] / 1e6:6.0f}/"
            f"{memory['tree_peak_pss'] / 1e6:5.0f} "
            f"{mixing['neighbours']:7.2f} "
            f"{mixing.get('row_groups_per_batch', float('nan')):7.1f} "
            f"{r['others_cpu']:7.2f}{'' if r['whole'] else '  cut'}"
        )
    for r in results:
        if r["status"] != "ok":
            lines.append(f"{r['contestant']:38} {r['status']}: {r['error'][:200]}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    facts: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": platform.processor() or platform.machine(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "versions": {},
    }
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
        facts["cpu"] = models[0] if models else facts["cpu"]
    for name in ("dask-loader", "dask", "distributed", "numpy", "pyarrow", "torch"):
        with suppress(metadata.PackageNotFoundError):
            facts["versions"][name] = metadata.version(name)
    with suppress(OSError, subprocess.CalledProcessError):
        facts["commit"] = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    return facts
