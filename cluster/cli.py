"""The command line: `dask loader cluster ...` and `python -m cluster ...`.

Each kind is a command, and each field of its spec a flag of the same name, made from the
spec itself. The cluster lives as long as the command.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

import click

from cluster.errors import (
    ClusterError,
    SpecError,
    StartError,
    WorkersMissingError,
)

_USAGE, _FAILURE, _DEADLINE = 2, 1, 3


class _Kinds(click.Group):
    """Makes the command of a kind when it is asked for: specs load Dask."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from cluster.kinds import _KINDS

        return sorted({*super().list_commands(ctx), *_KINDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from cluster.kinds import _KINDS

        if cmd_name in _KINDS:
            return _command(cmd_name)
        return super().get_command(ctx, cmd_name)


@click.group("cluster", cls=_Kinds)
def main() -> None:
    """Start a Dask cluster and keep it until Ctrl-C or SIGTERM.

    Exit code 0: ended as asked. 1: it did not come up, or broke. 2: the command was not
    understood. 3: not all was there within --start-timeout-s.
    """


@main.group()
def security() -> None:
    """Certificates for long-lived clusters."""


@security.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--days", type=click.IntRange(1), default=365, show_default=True)
def create(folder: Path, days: int) -> None:
    """Make certificates and keys in FOLDER, which must be empty or not there."""
    from cluster.security import create_certificates

    with _exit_codes():
        click.echo(create_certificates(folder, days=days))


def _command(kind: str) -> click.Command:
    from cluster.kinds import _KINDS

    found = _KINDS[kind]
    spec = getattr(importlib.import_module(found.module), found.spec)
    helps = _described(spec)
    options: list[click.Parameter] = [
        _option(field, helps.get(field.name, "")) for field in fields(spec)
    ]
    options += [
        click.Option(
            ["--adapt", "limits"],
            metavar="MIN:MAX",
            help="Follow the consumers' hunger, between so many workers.",
        ),
        click.Option(
            ["--json", "as_json"], is_flag=True, help="Print a line of JSON instead."
        ),
        click.Option(
            ["--scheduler-file"],
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write the address there too, for Client(scheduler_file=); removed at "
            "the end.",
        ),
    ]

    def run(**given: Any) -> None:
        extra = {
            name: given.pop(name) for name in ("limits", "as_json", "scheduler_file")
        }
        chosen = {
            name: _value(value)
            for name, value in given.items()
            if value is not None and value != ()
        }
        _serve(kind, chosen, **extra)

    text = (spec.__doc__ or "").partition("\n")[0]
    return click.Command(kind, params=options, callback=run, help=text)


def _option(field: Field[Any], text: str) -> click.Option:
    """Make the flag of a field. What is not given is left to the spec's default."""
    flag, kind = "--" + field.name.replace("_", "-"), str(field.type)
    options: dict[str, Any] = {"default": None, "help": text}
    if kind == "bool":
        flag = f"{flag}/--no-{flag[2:]}"
    elif "Mapping" in kind:
        options |= {"multiple": True, "type": _Pair(), "metavar": "NAME=VALUE"}
    elif "Sequence" in kind or "tuple" in kind:
        options |= {"multiple": True, "type": str}
    elif "str" in kind:
        options |= {"type": str}
    else:
        options |= {"type": float if "float" in kind else int}
    return click.Option([flag, field.name], **options)


class _Pair(click.ParamType):  # type: ignore[type-arg]
    name = "pair"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        name, sign, text = str(value).partition("=")
        if not sign or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


def _value(value: Any) -> Any:
    if isinstance(value, tuple):
        return dict(value) if isinstance(value[0], tuple) else value
    return None if value == "none" else value


def _described(spec: type) -> dict[str, str]:
    """Read what the docstrings of a spec and its bases say of each field."""
    found: dict[str, str] = {}
    for cls in reversed(spec.__mro__):
        _, _, part = (cls.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(
            r"^ {8}(\w+): (.*(?:\n {12}.*)*)", part, re.MULTILINE
        ):
            found[name] = " ".join(text.split())
    return found


def _serve(
    kind: str,
    options: Mapping[str, Any],
    *,
    limits: str | None,
    as_json: bool,
    scheduler_file: Path | None,
) -> None:
    from cluster.kinds import launch

    between = _limits(limits)
    # In a torchrun job every rank runs this command, and one speaks for all.
    speaks = kind != "torchrun" or os.environ.get("RANK") == "0"
    secured = options.get("insecure") is False or "insecure" not in options
    # On one machine the wire is plain; a torchrun job has its certificates in any case.
    makes_its_own = kind not in ("local", "torchrun")
    if makes_its_own and secured and "certificates" not in options:
        raise click.UsageError(
            "nobody else could connect to this cluster, as its certificates would stay in "
            "this process; make some with `python -m cluster security create DIR`, and "
            "give --certificates DIR"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with _exit_codes(), contextlib.ExitStack() as stack:
        # A second signal must not cut the end short.
        launched = launch(kind, **options)
        stack.callback(launched.close)
        stack.callback(signal.signal, signal.SIGTERM, signal.SIG_IGN)
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        if between is not None:
            launched.adapt(minimum=between[0], maximum=between[1])
        about = {
            "kind": kind,
            "address": launched.address,
            "dashboard_link": launched.dashboard_link,
        }
        if scheduler_file is not None and speaks:
            _write(scheduler_file, {"type": "Scheduler", **about})
            stack.callback(scheduler_file.unlink, missing_ok=True)
        if speaks:
            click.echo(json.dumps(about) if as_json else launched.address)
        threading.Event().wait()


def _limits(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not MIN:MAX, such as 1:8", param_hint="--adapt"
        )
    return int(found[1]), int(found[2])


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is never seen half written, for this user only."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        json.dump(content, file)
    os.replace(name, path)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(0)
    except SpecError as error:
        _fail(error, _USAGE)
    except WorkersMissingError as error:
        _fail(error, _DEADLINE)
    except StartError as error:
        _fail(error, _FAILURE if error.waited_s is None else _DEADLINE)
    except (ClusterError, OSError) as error:
        _fail(error, _FAILURE)


def _fail(error: Exception, code: int) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    sys.exit(code)
