"""The command line: flags as the spec's fields, a cluster until the signal, exit codes."""

from __future__ import annotations

import configparser
import importlib
import json
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from distributed import Client

from cluster.cli import main
from cluster.kinds import _KINDS
from dask_loader.cli import main as loader

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", sorted(_KINDS))
def test_each_field_of_a_spec_is_a_flag_with_words(kind: str) -> None:
    command = main.get_command(click.Context(main), kind)
    assert command is not None
    found = _KINDS[kind]
    spec = getattr(importlib.import_module(found.module), found.spec)
    flags = {p.name: p for p in command.params if isinstance(p, click.Option)}
    names = {field.name for field in fields(spec)}
    assert set(flags) == names | {"limits", "as_json", "scheduler_file"}
    for name in names:
        assert flags[name].opts == ["--" + name.replace("_", "-")]
        assert flags[name].help
    assert CliRunner().invoke(main, [kind, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["local", "--workers", "-1"], 2, "workers=-1 must be a whole number"),
        (["local", "--workers", "x"], 2, "'x' is not a valid integer"),
        (["local", "--adapt", "3"], 2, "'3' is not MIN:MAX, such as 1:8"),
        (["ssh", "--hosts", "h"], 2, "nobody else could connect to this cluster"),
        (["slurm", "--shared-directory", "/s"], 2, "nobody else could connect to this"),
        (
            ["slurm", "--insecure", "--prologue", "module load a", "--workers", "-1"],
            2,
            "workers=-1 must be",
        ),
        (["ssh", "--insecure"], 2, "hosts=() is empty"),
        (["ssh", "--environment", "X"], 2, "'X' is not NAME=VALUE"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["local", "--start-timeout-s", "0.01"], 3, "not up after 0.01 s"),
    ],
)
def test_what_is_wrong_is_said_with_its_code(
    arguments: list[str], code: int, text: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_the_signal(tmp_path: Path, end: signal.Signals) -> None:
    file = tmp_path / "scheduler.json"
    options = ("--workers", "1", "--json", "--scheduler-file", str(file))
    with subprocess.Popen(
        [sys.executable, "-m", "cluster", "local", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            about = json.loads(process.stdout.readline())
            assert file.stat().st_mode & 0o077 == 0
            with Client(scheduler_file=str(file), set_as_default=False) as client:
                assert client.scheduler.address == about["address"]
                assert client.submit(sum, [1, 2]).result(timeout=180) == 3
            process.send_signal(end)
            assert process.wait(180) == 0
            assert (process.stdout.read(), process.stderr.read()) == ("", "")
        finally:
            process.kill()
    assert not file.exists()


def test_certificates_are_made(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    folder = tmp_path / "certs"
    arguments = ["security", "create", str(folder)]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.output) == (0, f"{folder}\n")
    assert (folder / "client-key.pem").stat().st_mode & 0o077 == 0
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2
    assert "Error: " in again.output


def test_dask_loader_has_it_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = configparser.ConfigParser()
    setup.read(_ROOT / "setup.cfg")
    text = setup["options.entry_points"]["dask_loader_cli"].strip()
    name, value = text.split(" = ")
    assert EntryPoint(name, value, "dask_loader_cli").load() is main
    folder = tmp_path / "some-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: some\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(f"[dask_loader_cli]\n{text}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = CliRunner().invoke(loader, ["cluster", "local", "--help"])
    assert done.exit_code == 0
    assert "--threads-per-worker" in done.output
    assert "cluster" in CliRunner().invoke(loader, ["--help"]).output
    assert CliRunner().invoke(loader, ["nonsense"]).exit_code == 2
