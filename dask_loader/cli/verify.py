"""`dask loader verify`: read an epoch and prove that each row came as promised."""

from __future__ import annotations

import json
from typing import Any

import click

from dask_loader.cli.options import common_options, named_errors


@click.command()
@common_options
@click.option(
    "--num-workers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="DataLoader workers of each rank.",
)
@click.option(
    "--resume-at",
    type=click.IntRange(0),
    metavar="STEP",
    help="Stop after so many steps, take a checkpoint, and go on from it elsewhere.",
)
@click.option(
    "--resume-world-size",
    type=click.IntRange(1),
    metavar="RANKS",
    help="Go on with so many ranks and the same global batch; with --resume-at.",
)
def verify(
    paths: tuple[str, ...],
    world_size: int,
    num_workers: int,
    epoch: int,
    resume_at: int | None,
    resume_world_size: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Read an epoch of PATH on all ranks, and prove that each row came as promised.

    Which rows must come is found out with pyarrow alone, slowly. Then each rank's epoch is
    read, one rank after the other, and compared: every row exactly once; copies flagged,
    fewer than --world-size, of rows of the same global batch; rows left off only where
    --uneven drop or --drop-last say so; as many batches as len() said.

    Takes two bytes of memory for each row of the files, and eight in a temporary file for
    each row that comes.

    The digest of the global batches is the same at every --world-size with the same global
    batch (--batch-size times --world-size) and the same --num-splits.
    """
    if resume_world_size is not None and resume_at is None:
        raise click.UsageError("--resume-world-size needs --resume-at")
    with named_errors():
        from dask_loader.cli.reading import read_and_check
        from dask_loader.cli.report import as_dict, as_text

        outcome = read_and_check(
            paths,
            options,
            world_size=world_size,
            num_workers=num_workers,
            epoch=epoch,
            resume_at=resume_at,
            resume_world_size=resume_world_size or world_size,
        )
    if as_json:
        click.echo(json.dumps(as_dict(outcome), indent=2))
    else:
        click.echo(as_text(outcome))
    if not outcome.report.is_proved:
        click.get_current_context().exit(1)
