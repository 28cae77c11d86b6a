"""open_cluster() with launchers that fail at each place: all that began is closed."""

from __future__ import annotations

import pytest

from cluster import StartError, UnreachableError, WorkersMissingError
from cluster.lifecycle import open_cluster


class _Launcher:
    """Starts nothing; fails where it is told to."""

    kind = "fake"
    revives_scheduler = False
    security = None
    dashboard_link = None
    troubles = ("worker 7 was given up",)

    def __init__(self, address: str, error: BaseException | None = None) -> None:
        self.address = address
        self.error = error
        self.calls: list[str] = []

    def start(self, *, timeout_s: float) -> None:  # noqa: ARG002
        self.calls.append("start")
        if self.error is not None:
            raise self.error

    def scale(self, num_workers: int, *, timeout_s: float) -> None:  # noqa: ARG002
        self.calls.append(f"scale {num_workers}")

    def logs(self, *, num_lines: int, timeout_s: float) -> dict[str, str]:  # noqa: ARG002
        return {"7": "its last words"}

    def close(self) -> None:
        self.calls.append("close")


@pytest.mark.parametrize("error", [StartError("no"), KeyboardInterrupt()])
def test_a_failed_start_is_closed(error: BaseException) -> None:
    launcher = _Launcher("tcp://127.0.0.1:1", error)
    with pytest.raises(type(error)):
        open_cluster(launcher, num_workers=1, timeout_s=5)
    assert launcher.calls == ["start", "close"]


def test_a_scheduler_that_does_not_answer_is_closed() -> None:
    launcher = _Launcher("tcp://127.0.0.1:1")
    with pytest.raises(
        UnreachableError, match=r"answers at tcp://127\.0\.0\.1:1 after"
    ):
        open_cluster(launcher, num_workers=1, timeout_s=0.2)
    assert launcher.calls == ["start", "close"]


def test_workers_that_do_not_come_close_it_again(foreign) -> None:
    launcher = _Launcher(foreign.address)
    with pytest.raises(
        WorkersMissingError,
        match=r"asked for 9 workers, but the fake cluster at .* has",
    ):
        open_cluster(launcher, num_workers=9, timeout_s=0.2)
    assert launcher.calls == ["start", "close"]


def test_closing_twice_ends_the_launcher_once(foreign) -> None:
    launcher = _Launcher(foreign.address)
    opened = open_cluster(launcher, num_workers=0, timeout_s=30)
    opened.close()
    opened.close()
    assert launcher.calls == ["start", "close"]


def test_scaling_asks_the_launcher_and_believes_the_scheduler(foreign) -> None:
    launcher = _Launcher(foreign.address)
    with open_cluster(launcher, num_workers=2, timeout_s=60) as opened:
        opened.scale(2)
        with pytest.raises(
            WorkersMissingError, match=r"asked for 1 workers, but .* has 2"
        ):
            opened.scale(1, timeout_s=0.2)
    assert launcher.calls == ["start", "scale 2", "scale 1", "close"]


def test_what_was_given_up_is_told_and_logs_are_put_together(foreign) -> None:
    with open_cluster(_Launcher(foreign.address), num_workers=2, timeout_s=60) as c:
        assert repr(c).endswith(" workers=2; worker 7 was given up>")
        with pytest.raises(
            WorkersMissingError, match=r"s \(worker 7 was given up\); look"
        ):
            c.wait_for_workers(9, timeout_s=0.2)
        assert c.logs()["7"] == "its last words"
        assert len(c.logs()) == 4  # the scheduler's and two workers' too


def test_logs_of_a_scheduler_that_died_are_what_the_launcher_kept(
    start_foreign,
) -> None:
    with start_foreign() as own:
        c = open_cluster(_Launcher(own.address), num_workers=0, timeout_s=60)
        own.scheduler.kill()
        own.scheduler.wait(180)
        logs = c.logs(timeout_s=1)
        assert logs["7"] == "its last words"
        assert "no Dask scheduler answers at" in logs["scheduler"]
        c.close()
