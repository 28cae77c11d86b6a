"""The outcome of `verify`, for people and for programs. Pure."""

from __future__ import annotations

from typing import Any

from dask_loader.cli.proof import Finding
from dask_loader.cli.reading import Outcome


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as plain values."""
    inventory, promise, report = outcome.inventory, outcome.promise, outcome.report
    return {
        "proved": report.is_proved,
        "files": len(inventory.files),
        "row_groups": len(inventory.starts) - 1,
        "rows": int(inventory.starts[-1]),
        "rows_kept": promise.num_rows,
        "rows_seen": report.num_seen,
        "rows_left_off": report.num_missing,
        "epoch": outcome.epoch,
        "world_size": outcome.world_size,
        "batch_size": outcome.batch_size,
        "num_splits": outcome.num_splits,
        "num_workers": outcome.num_workers,
        "resume_at": outcome.resume_at,
        "resume_world_size": outcome.resume_world_size,
        "digest": report.digest,
        "ranks": [
            {
                "rank": rank.rank,
                "steps": rank.steps,
                "rows": rank.rows,
                "pads": rank.pads,
                "digest": rank.digest,
            }
            for rank in report.ranks
        ],
        "findings": [_finding(finding) for finding in report.findings],
    }


def as_text(outcome: Outcome) -> str:
    """Return the outcome as a few lines, with a table of the ranks."""
    facts = as_dict(outcome)
    lines = [
        "{rows} rows in {row_groups} row groups of {files} files, {rows_kept} of them to "
        "be read".format_map(facts),
        "epoch {epoch}, world_size {world_size}, batch_size {batch_size}, num_splits "
        "{num_splits}, num_workers {num_workers}".format_map(facts),
    ]
    if outcome.resume_at is not None:
        lines[-1] += f", stopped and resumed at step {outcome.resume_at}"
        if outcome.resume_world_size != outcome.world_size:
            lines[-1] += f" with world_size {outcome.resume_world_size}"
    lines += ["", *_table(facts), ""]
    if outcome.report.is_proved:
        lines.append(_proved(outcome))
    else:
        lines.append("NOT PROVED")
        for finding in outcome.report.findings:
            lines += _told(finding)
    return "\n".join(lines)


def _table(facts: dict[str, Any]) -> list[str]:
    ranks = facts["ranks"]
    # Global batches: where ranks differ, the most.
    total = {
        "rank": "all",
        "steps": max(rank["steps"] for rank in ranks),
        "rows": sum(rank["rows"] for rank in ranks),
        "pads": sum(rank["pads"] for rank in ranks),
        "digest": facts["digest"],
    }
    names = ("rank", "steps", "rows", "pads", "digest")
    rows = [dict(zip(names, names, strict=True)), *ranks, total]
    widths = {name: max(len(str(row[name])) for row in rows) for name in names}
    return [
        "  ".join(f"{row[name]!s:>{widths[name]}}" for name in names) for row in rows
    ]


def _proved(outcome: Outcome) -> str:
    promise, report = outcome.promise, outcome.report
    text = f"PROVED: {report.num_seen} rows came exactly once"
    if promise.num_pads:
        text += f", {promise.num_pads} of them a second time as flagged copies"
    if promise.num_dropped:
        text += f", {promise.num_dropped} were left off as promised"
    return text


def _told(finding: Finding) -> list[str]:
    lines = [f"- {finding.kind}: {finding.text}"]
    for place, came in finding.rows:
        steps = ", ".join(f"rank {rank} step {step}" for rank, step in came[:4])
        more = f" and {len(came) - 4} more" if len(came) > 4 else ""
        lines.append(f"    {place}" + (f": {steps}{more}" if steps else ""))
    return lines


def _finding(finding: Finding) -> dict[str, Any]:
    rows = [
        {
            "file": place.file,
            "row_group": place.row_group,
            "row": place.row,
            "came": [{"rank": rank, "step": step} for rank, step in came],
        }
        for place, came in finding.rows
    ]
    return {"kind": finding.kind, "text": finding.text, "rows": rows}
