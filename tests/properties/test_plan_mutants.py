"""Faults made on purpose in the plan: each is caught by a property on few examples.

A mutant is a function of the plan with a piece of its text replaced. That the text is there
is asserted, so whoever changes such a line is asked to say what the fault would be now.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any

import pytest

from dask_loader.plan import epoch, order, schedule, share, stage, window
from dask_loader.run import Progress
from tests.properties.plan_cases import Example, fixed_examples
from tests.properties.plan_checks import CHECKS

NUM_EXAMPLES = 80

# name -> the function at fault, and what is replaced in it by what
Edits = dict[str, str]
MUTANTS: dict[str, tuple[Callable[..., Any], Edits]] = {
    "row groups in the same order in every epoch": (
        order.row_line,
        {'"line", seed, epoch': '"line", seed'},
    ),
    "windows of all splits are mixed alike": (
        epoch.Epoch.window,
        {"self.number, split, index": "self.number, index"},
    ),
    "windows of a split are mixed alike": (
        epoch.Epoch.window,
        {"self.number, split, index": "self.number, split"},
    ),
    "windows are mixed alike in all epochs": (
        epoch.Epoch.window,
        {"self.order.seed, self.number, split": "self.order.seed, split"},
    ),
    "a re-cut within a window begins it anew": (
        epoch.Epoch.first_row,
        {"int(self._cut(split).firsts[index])": "0"},
    ),
    "the line is cut where the deal does not": (
        window.split_bounds,
        {"num_splits - 1 - splits": "splits"},
    ),
    "a window takes a slice too many": (
        window._reach,
        {'side="right") - 1': 'side="right")'},
    ),
    "a sparse filter makes a window read everything": (
        window.cut_windows,
        {"READ_FACTOR * window": "_LARGEST"},
    ),
    "parts of a large slice are larger than a window": (
        window.cut_windows,
        {"-(-run_sizes // window)": "run_sizes // window"},
    ),
    "dealt off by one": (
        share.Deal._dealt,
        {"(self.num_splits - 1) - splits": "self.num_splits - splits"},
    ),
    "dealt from the epoch's begin after a re-cut": (
        share.Deal._dealt,
        {"positions[:, None] - self.stage_start": "positions[:, None]"},
    ),
    "classes are not counted from where the run began": (
        share.Deal.rank_splits,
        {"rank + self.first - self.stage_start": "rank"},
    ),
    "classes are not counted from the re-cut": (
        share.Deal.rank_splits,
        {" - self.stage_start": ""},
    ),
    "drop after sharing": (
        share.Deal.pieces,
        {
            "end -= (end - begin) % self.world_size": "pass",
            "+ each + (chunk < over)": '+ each + (chunk < over) * (self.uneven != "drop")',
        },
    ),
    "uneven chunks overlap": (
        share.Deal.pieces,
        {"np.minimum(chunk, over)": "0"},
    ),
    "ranks of one class take the same chunk": (
        share.Deal.pieces,
        {"chunk = rank // self.num_classes": "chunk = rank % chunks"},
    ),
    "the last global batch goes beyond the epoch": (
        share.Deal.pieces,
        {"np.minimum(begin + self.step_rows, self.num_rows)": "begin + self.step_rows"},
    ),
    "steps are not counted from where the run began": (
        share.Deal.pieces,
        {"begin = self.first + ": "begin = "},
    ),
    "pads from the epoch's begin": (
        share.Deal.pad,
        {"self.num_rows - tail + rank % tail - self.stage_start": "rank % tail"},
    ),
    "a pad for every rank": (
        share.Deal.pad,
        {" or rank < short": ""},
    ),
    "a tail counted from the epoch's begin": (
        share.Deal.tail_rows.fget,  # type: ignore[attr-defined]
        {"self.num_rows - self.first": "self.num_rows"},
    ),
    "a last step that drop leaves nobody": (
        share.Deal.num_steps,
        {'"drop": self.world_size': '"drop": 1'},
    ),
    "a last step for all ranks although rows are exact": (
        share.Deal.num_steps,
        {'"exact": rank + 1': '"exact": 1'},
    ),
    "pads are not counted as rows": (
        share.Deal.num_rank_rows,
        {"each += over > 0": "pass"},
    ),
    "workers take single steps where turns are longer": (
        schedule.Turn.mine,
        {"steps // self.length": "steps"},
    ),
    "each worker has a pad": (
        schedule.walk,
        {"step == num_steps - 1": "step == my_last"},
    ),
    "a window is let go before its last row": (
        schedule._InUse.pass_before,
        {"<= row": "<= row + 1"},
    ),
    "a window is let go a step late": (
        schedule._InUse.pass_before,
        {"<= row": "< row"},
    ),
    "a re-cut forgets a row": (
        stage.segments,
        {"done + old.num_splits - 1 - s": "done + old.num_splits - s"},
    ),
    "a second re-cut counts from the epoch's begin": (
        stage.segments,
        {"done = new.start - old.start": "done = new.start"},
    ),
    "a re-cut where the last one was keeps both": (
        stage.next_stages,
        {"s.start < rows": "s.start <= rows"},
    ),
    "a re-cut forgets the cuts before": (
        stage.next_stages,
        {"*(s for s in stages if s.start < rows), ": ""},
    ),
    "a state counts from where its run began": (
        Progress.position,
        {"deal.first + done * deal.step_rows": "done * deal.step_rows"},
    ),
    "a state counts rows that are not there": (
        Progress.position,
        {"min(": "max("},
    ),
    "what is left off comes after a resume": (
        Progress.position,
        {"rows = deal.num_rows  #": "pass  #"},
    ),
}


@cache
def few_examples() -> list[Example]:
    return fixed_examples(NUM_EXAMPLES)


def mutate(function: Any, edits: Edits) -> CodeType:
    """Compile a function with other text in it."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in edits.items():
        assert source.count(old) == 1, (
            f"{function.__qualname__} has no {old!r} any more"
        )
        source = source.replace(old, new)
    found: dict[str, Any] = {}
    exec(compile(source, "<mutant>", "exec"), function.__globals__, found)
    made = found[function.__name__]
    code: CodeType = getattr(made, "fget", made).__code__
    return code


def caught_by() -> str | None:
    """Return the first check that fails."""
    for example in few_examples():
        for check in CHECKS:
            try:
                check(example)
            except Exception:  # a fault may end in any error
                return check.__name__
    return None


def test_without_a_fault_every_property_holds() -> None:
    for example in few_examples():
        for check in CHECKS:
            check(example)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_the_plan_is_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, edits = MUTANTS[name]
    # The code is replaced, not the name: others have imported the function.
    with monkeypatch.context() as patch:
        patch.setattr(function, "__code__", mutate(function, edits))
        found = caught_by()
    assert found is not None
