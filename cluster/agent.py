"""What runs on a host for a launcher elsewhere: starts processes, and ends with it.

It is sent over ssh as text, so a host needs Python with distributed, and nothing of this
package. One line of JSON after the other comes in at stdin (the first is _Hello, which
holds the certificates), one after the other goes out at stdout. When stdin ends, or
nothing came for lease_s, everything it started is killed and its folder removed: a
launcher that was killed, or cut off, leaves nothing.

Only the standard library is imported, and nothing of ours: it must stay one file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

# Of each process, for logs() and for errors; a longer line is cut.
_KEPT_LINES = 500
_LINE_CHARACTERS = 2000
_TAIL_LINES = 15
# As long as Dask's own nannies give a worker to close.
_CLOSE_S = 4.0
_POLL_S = 0.05
_SCHEDULER = "scheduler"


class _Child:
    """One process and the last lines it wrote."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str]
    ) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n")[:_LINE_CHARACTERS])

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self, kill_tree: Callable[[int], None]) -> None:
        kill_tree(self.process.pid)
        with contextlib.suppress(ProcessLookupError):  # what its own end left behind
            os.killpg(self.process.pid, signal.SIGKILL)


class Agent:
    """Serves one launcher until that goes."""

    def __init__(self, hello: dict[str, Any], out: TextIO) -> None:
        """Make the private folder, with the certificates and the nanny's program."""
        self._out = out
        self._lock = threading.Lock()
        self._children: dict[str, _Child] = {}
        self._ended: dict[str, _Child] = {}
        self._lease_s = float(hello["lease_s"])
        self._heard_s = time.monotonic()
        self._closing = threading.Event()
        self._folder = tempfile.mkdtemp(prefix="dask-cluster-")  # mode 0700
        try:
            self._kill_tree = self._unpack(hello["files"])
        except BaseException:  # such as: this Python has no psutil
            self._remove()
            raise
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
        self._environment = {
            **kept,
            **hello["environment"],
            "CLUSTER_PRIVATE_FOLDER": self._folder,
            "PYTHONUNBUFFERED": "1",
        }

    def _unpack(self, files: dict[str, str]) -> Callable[[Any], None]:
        for name, text in files.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            path = os.path.join(self._folder, name)
            with open(os.open(path, flags, 0o600), "w") as file:
                file.write(text)
        nanny: dict[str, Any] = {"__name__": "nanny"}
        exec(files["nanny.py"], nanny)  # the launcher's own program
        kill_tree: Callable[[Any], None] = nanny["kill_tree"]
        return kill_tree

    def serve(self, lines: TextIO) -> None:
        """Do what comes in, until nothing does."""
        threading.Thread(target=self._end_unheard, daemon=True).start()
        connection = os.environ.get("SSH_CONNECTION", "").split()
        self._say(
            event="ready",
            address=connection[2] if len(connection) == 4 else "",
            pid=os.getpid(),
        )
        try:
            for line in lines:
                self._heard_s = time.monotonic()
                asked = json.loads(line)
                if asked["op"] == "close":
                    self._end_in_peace()
                    break
                if asked["op"] != "beat":
                    getattr(self, "_" + asked["op"])(asked)
        finally:
            self._end()

    def _start(self, asked: dict[str, Any]) -> None:
        name = asked["name"]
        file = asked.get("address_file")
        if file is not None:
            file = os.path.join(self._folder, file)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)
        command = [
            *(sys.executable, "-P", "-W", "ignore:resource_:UserWarning"),
            *(os.path.join(self._folder, "nanny.py"), str(os.getpid())),
            *(part.replace("{folder}", self._folder) for part in asked["arguments"]),
        ]
        try:
            child = _Child(name, command, self._environment)
        except OSError as error:
            self._say(event="ended", name=name, code=-1, tail=str(error))
            return
        self._children[name] = child
        self._ended.pop(name, None)
        threading.Thread(target=self._watch, args=[child, file], daemon=True).start()

    def _stop(self, asked: dict[str, Any]) -> None:
        child = self._children.get(asked["name"])
        if child is not None:
            work = [child], _CLOSE_S if asked["in_peace"] else 0.0
            threading.Thread(target=self._end_children, args=work, daemon=True).start()

    def _logs(self, asked: dict[str, Any]) -> None:
        children = {**self._ended, **self._children}
        logs = {
            name: _last(child, asked["num_lines"]) for name, child in children.items()
        }
        self._say(event="logs", logs=logs)

    def _watch(self, child: _Child, address_file: str | None) -> None:
        while address_file is not None and child.process.poll() is None:
            with contextlib.suppress(OSError, ValueError), open(address_file) as file:
                self._say(event="address", address=json.load(file)["address"])
                address_file = None
            time.sleep(_POLL_S)  # polling a file that another process writes
        code = child.process.wait()
        child.kill(self._kill)
        if self._children.get(child.name) is child:
            self._ended[child.name] = self._children.pop(child.name)
        time.sleep(_POLL_S)  # its last lines are read by another thread
        self._say(
            event="ended", name=child.name, code=code, tail=_last(child, _TAIL_LINES)
        )

    def _end_unheard(self) -> None:
        while not self._closing.wait(min(1.0, self._lease_s / 4)):
            if time.monotonic() - self._heard_s > self._lease_s:
                self._end()
                os._exit(1)  # the main thread still reads

    def _end_in_peace(self) -> None:
        children = list(self._children.values())
        # A worker that closes says good-bye to its scheduler, which must be there.
        workers = [child for child in children if child.name != _SCHEDULER]
        self._end_children(workers, _CLOSE_S)
        self._end_children(children, _CLOSE_S)

    def _end(self) -> None:
        self._closing.set()
        self._end_children(list(self._children.values()), 0.0)
        self._remove()

    def _end_children(self, children: list[_Child], patience_s: float) -> None:
        if patience_s:
            for child in children:
                child.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                give_up = time.monotonic() + patience_s
                for child in children:
                    child.process.wait(max(give_up - time.monotonic(), 0.0))
        for child in children:
            child.kill(self._kill)

    def _kill(self, pid: int) -> None:
        import psutil  # type: ignore[import-untyped]

        with contextlib.suppress(psutil.NoSuchProcess):
            self._kill_tree(psutil.Process(pid))

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _say(self, **event: object) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._out.write(json.dumps(event) + "\n")
            self._out.flush()


def _last(child: _Child, num_lines: int) -> str:
    return "\n".join(list(child.lines)[-num_lines:])


def main(hello: dict[str, Any]) -> None:
    """Serve at stdin and stdout; called by the line that the launcher runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Agent(hello, sys.stdout).serve(sys.stdin)
