"""The command line: `dask loader ...` and `python -m dask_loader ...`.

Dask's own `dask` command imports this at every call, also where it starts a scheduler or a
worker. So the commands load what they need, torch above all, when they are run.
"""

from __future__ import annotations

import click

from dask_loader.cli.plan import plan
from dask_loader.cli.plugins import PluginGroup
from dask_loader.cli.verify import verify


@click.group("loader", cls=PluginGroup)
def main() -> None:
    """Parquet for PyTorch: see how it will be read, and prove that it is.

    Exit code 0: done, and proved. 1: a fault, in the data or in what was read. 2: the
    command was not understood.
    """


main.add_command(plan)
main.add_command(verify)
