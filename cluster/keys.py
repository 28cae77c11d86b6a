"""The folder that jobs read their keys from, and what becomes of it when its owner is gone.

It lies where all machines see it, so an owner that was killed is told from one on another
machine: by its process where that can be looked at from here, else by its heart-beat.
Times are compared with those of the same file server only, never with this machine's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PREFIX = "dask-cluster-"
_OWNER = "owner.json"
_BEAT_S = 60.0
# A program that was stopped, or whose machine slept, for less than this keeps its keys.
_SILENT_S = 3600.0
_REMOVE_S = 10.0


class KeyFolder:
    """A folder of mode 0700 with files of mode 0600; used by one thread at a time.

    A process of its own waits for the end of this one, and removes the folder then, also
    after SIGKILL. Should it be killed too, the next KeyFolder in the same place does.
    """

    def __init__(
        self, shared: str | os.PathLike[str], files: Mapping[str, str]
    ) -> None:
        """Write the files, and remove what others left that are gone.

        Args:
            shared: Made if it is not there.
            files: Names and contents.

        Raises:
            OSError: The folder cannot be written to.
        """
        os.makedirs(shared, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=os.path.abspath(shared)))
        write_private(self.path, {_OWNER: json.dumps(_this_process())} | dict(files))
        self._beaten_s = time.monotonic()
        self._remover = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; rm -rf -- "$0"', str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # neither Ctrl-C nor a closed terminal is for it
        )
        remove_abandoned(self.path.parent, now_s=self.path.stat().st_mtime)

    def beat(self) -> None:
        """Show that this process lives; costs something once a minute only."""
        if time.monotonic() - self._beaten_s >= _BEAT_S:
            self._beaten_s = time.monotonic()
            with contextlib.suppress(OSError):  # a file server that is away for a while
                os.utime(self.path)

    def remove(self) -> None:
        """Remove the folder; safe twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        assert self._remover.stdin is not None
        with contextlib.suppress(OSError):
            self._remover.stdin.close()
        try:
            self._remover.wait(_REMOVE_S)
        except subprocess.TimeoutExpired:  # a file server that is away
            self._remover.kill()
            self._remover.wait()


def write_private(folder: Path, files: Mapping[str, str]) -> None:
    """Write new files that only their owner can read."""
    for name, text in files.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(folder / name, flags, 0o600), "w") as file:
            file.write(text)


def remove_abandoned(shared: Path, *, now_s: float) -> None:
    """Remove the folders of this user whose owners are gone.

    Args:
        shared: Where they lie.
        now_s: The file server's time.
    """
    for folder in shared.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone by now
            stat = folder.lstat()
            if stat.st_uid == os.geteuid() and is_abandoned(
                _read_owner(folder), _this_process(), silent_s=now_s - stat.st_mtime
            ):
                shutil.rmtree(folder, ignore_errors=True)


def is_abandoned(
    owner: Mapping[str, Any] | None, here: Mapping[str, Any], *, silent_s: float
) -> bool:
    """Tell whether the owner of a folder is gone.

    Args:
        owner: What it wrote of itself, if that can be read.
        here: The same of this process.
        silent_s: Seconds since its last beat.
    """
    if owner is None or owner.get("place") != here["place"]:
        return silent_s > _SILENT_S
    try:
        state, began = _state(int(owner["pid"]))
        return state == "Z" or began != owner["began"]
    except OSError:  # no such process
        return True
    except (KeyError, TypeError, ValueError):  # written by another version of this file
        return silent_s > _SILENT_S


def _read_owner(folder: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads((folder / _OWNER).read_text())
    except (FileNotFoundError, ValueError):  # half written
        return None
    return owner if isinstance(owner, dict) else None


def _this_process() -> dict[str, Any]:
    # Containers of one machine may share all but the name space of process ids.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    space = os.readlink("/proc/self/ns/pid")
    return {
        "place": [socket.gethostname(), boot, space],
        "pid": os.getpid(),
        "began": _state(os.getpid())[1],
    }


def _state(pid: int) -> tuple[str, str]:
    """Return a process's state, and when it began in ticks since the machine did."""
    # Behind the program's name, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]
