"""What is tried again, for how long, and what is said when it does not help."""

from __future__ import annotations

from typing import Any

import pytest

from dask_loader.catalog import patience
from dask_loader.catalog.patience import MAX_TRIES, patiently
from dask_loader.errors import StorageError


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.0)


class Store:
    def __init__(self, *answers: Any) -> None:
        self.answers, self.num_calls = list(answers), 0

    def __call__(self, timeout_s: float) -> Any:
        assert 0 < timeout_s <= patience.DEADLINE_S
        self.num_calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def ask(store: Store) -> Any:
    return patiently(store, what="list", path="b/x", scrub=lambda t: t)


def test_what_passes_is_tried_again() -> None:
    store = Store(OSError("SlowDown"), ConnectionResetError(), TimeoutError(), "fine")
    assert ask(store) == "fine"
    assert store.num_calls == 4


def test_what_does_not_pass_is_named_with_tries_and_cause() -> None:
    store = Store(OSError("SlowDown 17"))
    with pytest.raises(StorageError, match="cannot list 'b/x': 8 tries in") as caught:
        ask(store)
    assert "the last with OSError: SlowDown 17" in str(caught.value)
    assert (store.num_calls, caught.value.path) == (MAX_TRIES, "b/x")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("no"),
        OSError("An error (403): Forbidden"),
        OSError("AccessDenied"),
    ],
)
def test_denied_access_is_not_tried_again(error: Exception) -> None:
    store = Store(error)
    with pytest.raises(
        StorageError, match=r"the store denies access .* give credentials"
    ):
        ask(store)
    assert store.num_calls == 1


@pytest.mark.parametrize("error", [FileNotFoundError("x"), TypeError("y")])
def test_what_no_try_mends_is_raised_at_once(error: Exception) -> None:
    store = Store(error)
    with pytest.raises(type(error)):
        ask(store)
    assert store.num_calls == 1


def test_a_deadline_ends_the_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "DEADLINE_S", -1.0)
    with pytest.raises(StorageError, match=": 1 tries in"):
        patiently(_fail, what="list", path="x", scrub=str)


def _fail(_: float) -> None:
    raise OSError("again")
