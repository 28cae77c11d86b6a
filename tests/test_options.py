"""Options check themselves; every refusal says the value."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dask_loader.errors import ConfigError, PlanError
from dask_loader.options import DatasetOptions, check_memory


def test_the_defaults_are_valid_and_resolved() -> None:
    options = DatasetOptions()
    assert options.batch_size == 1024
    assert options.memory_bytes == 2**30
    assert options.window == (64 * 2**20, True)
    assert options.worker_timeout_s == 60.0


def test_what_users_may_write() -> None:
    options = DatasetOptions(
        batch_size=None,
        shuffle=True,
        seed=-3,
        shuffle_window=5000,
        uneven="exact",
        num_splits=1,
        memory_limit=10**6,
        worker_timeout="2 min",
        verify_checksums=False,
    )
    assert options.window == (5000, False)
    assert options.memory_bytes == 10**6
    assert options.worker_timeout_s == 120.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"batch_size": 0},
            "batch_size=0 must be at least 1 (rows, or None for rows)",
        ),
        (
            {"batch_size": -4},
            "batch_size=-4 must be at least 1 (rows, or None for rows)",
        ),
        (
            {"batch_size": 4.0},
            "batch_size=4.0 must be a whole number (rows, or None for rows)",
        ),
        (
            {"batch_size": True},
            "batch_size=True must be a whole number (rows, or None for rows)",
        ),
        (
            {"batch_size": "4"},
            "batch_size='4' must be a whole number (rows, or None for rows)",
        ),
        ({"shuffle": 1}, "shuffle=1 must be True or False"),
        ({"shuffle": "yes"}, "shuffle='yes' must be True or False"),
        ({"drop_last": None}, "drop_last=None must be True or False"),
        ({"verify_checksums": 0}, "verify_checksums=0 must be True or False"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"seed": False}, "seed=False must be a whole number"),
        (
            {"shuffle_window": "big"},
            "shuffle_window='big' is not a size; give a whole number of bytes or text "
            'such as "64 MiB"',
        ),
        (
            {"shuffle_window": 0},
            'shuffle_window=0 must be at least 1 (rows, or text such as "64 MiB")',
        ),
        (
            {"shuffle_window": 1e6},
            "shuffle_window=1000000.0 must be a whole number "
            '(rows, or text such as "64 MiB")',
        ),
        (
            {"shuffle_window": None},
            "shuffle_window=None must be a whole number "
            '(rows, or text such as "64 MiB")',
        ),
        (
            {"uneven": "even"},
            "uneven='even' must be one of ('pad', 'drop', 'exact')",
        ),
        ({"uneven": None}, "uneven=None must be one of ('pad', 'drop', 'exact')"),
        ({"num_splits": 0}, "num_splits=0 must be at least 1 (splits, or None)"),
        (
            {"num_splits": "auto"},
            "num_splits='auto' must be a whole number (splits, or None)",
        ),
        (
            {"drop_last": True, "batch_size": None},
            "drop_last=True needs a batch_size: with batch_size=None rows come one by "
            "one, and torch's DataLoader has a drop_last of its own",
        ),
        (
            {"memory_limit": "0 GiB"},
            "memory_limit='0 GiB' is not a size; give a whole number of bytes or text "
            'such as "64 MiB"',
        ),
        (
            {"memory_limit": None},
            "memory_limit=None is not a size; give a whole number of bytes or text "
            'such as "64 MiB"',
        ),
        (
            {"worker_timeout": "never"},
            "worker_timeout='never' is not a duration; give a number of seconds or "
            'text such as "60 s"',
        ),
        (
            {"worker_timeout": 0},
            "worker_timeout=0 is not a duration; give a number of seconds or text such "
            'as "60 s"',
        ),
    ],
)
def test_a_wrong_option_is_refused_with_its_value(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        DatasetOptions(**options)
    assert str(caught.value) == text


def test_windows_that_just_fit_are_accepted() -> None:
    check_memory(
        splits_in_hand=4, window_bytes=64, memory_bytes=256, num_splits=8, world_size=2
    )


def test_more_windows_than_memory_holds_are_refused_in_words() -> None:
    mib = 2**20
    text = (
        "this rank needs 64 windows of 64 MiB in hand (num_splits=64 / world_size=1) = "
        "4 GiB, and memory_limit is 1 GiB; raise memory_limit, or make num_splits or "
        "shuffle_window smaller (the order changes)"
    )
    with pytest.raises(PlanError, match=re.escape(text)):
        check_memory(
            splits_in_hand=64,
            window_bytes=64 * mib,
            memory_bytes=1024 * mib,
            num_splits=64,
            world_size=1,
        )
