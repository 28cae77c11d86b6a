"""Commands that other packages add, by entry points; loaded when they are asked for."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

# `name = package.module:command` of a click command.
ENTRY_POINTS = "dask_loader_cli"


class PluginGroup(click.Group):
    """A group whose own commands come first, then those of entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands."""
        others = (point.name for point in entry_points(group=ENTRY_POINTS))
        return sorted({*super().list_commands(ctx), *others})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for point in entry_points(group=ENTRY_POINTS, name=cmd_name):
            command: click.Command = point.load()
            return command
        return None
