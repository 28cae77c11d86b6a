"""`dask loader plan`: how an epoch will be read."""

from __future__ import annotations

import json
from typing import Any

import click

from dask_loader.cli.options import common_options, named_errors


@click.command()
@common_options
@click.option(
    "--rank",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The rank whose plan is printed.",
)
def plan(
    paths: tuple[str, ...],
    rank: int,
    world_size: int,
    epoch: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Print how a rank will read PATH: rows, steps, windows, memory.

    Only footers are read, and with --filters the columns that these need.
    """
    if rank >= world_size:
        raise click.BadParameter(
            f"{rank} is not below --world-size {world_size}", param_hint="--rank"
        )
    with named_errors():
        from dask_loader.cli.source import Source

        source = Source(paths, options)
        with source.dataset(rank=rank, world_size=world_size) as dataset:
            dataset.set_epoch(epoch)
            lines = dataset.explain().splitlines()
            facts = {
                "rank": rank,
                "world_size": world_size,
                "epoch": epoch,
                "files": len(source.found.paths),
                "rows": dataset.num_rows,
                "batch_size": dataset.batch_size,
                "steps": len(dataset),
                "explain": lines,
            }
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(lines))
