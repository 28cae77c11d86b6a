"""What a plan and a scheduler cost as data and ranks grow. Figures as JSON.

Plans: footers of 10^3 to 10^6 row groups are made up, 100 row groups a file, and turned
into a catalog, a plan and a first step, each size in a process of its own. Seconds are
those of one run; bytes are the most that was resident beyond the imported packages, the
made-up footers included.

Scheduler: a Dask scheduler and workers in processes of their own; 1 to 64 ranks, each a
client connection that asks for windows as our engine does, as many ahead, with the tasks
it sends and results as small; only that nothing is read. So the figures are what a
scheduler does for windows, and its tasks a second are what is left when the ranks, the
workers and it share this machine's cores.

    python benchmarks/growth.py --json growth.json
    python benchmarks/growth.py --part plan --row-groups 1000 1000000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import operator
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import distributed
import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
from report import machine
from watch import peak_rss_bytes

from dask_loader.catalog.catalog import FileEntry, make_catalog
from dask_loader.catalog.footers import FooterQuery, null_column
from dask_loader.catalog.forms import Form
from dask_loader.catalog.schema import pack_schema
from dask_loader.catalog.storage import Stamp, Storage
from dask_loader.course import Course
from dask_loader.engine.stream import _MIN_TASKS, _TASKS_PER_SLOT
from dask_loader.explain import explain
from dask_loader.options import DatasetOptions
from dask_loader.plan.schedule import walk
from dask_loader.read.nulls import make_null_policy
from dask_loader.read.task import ReadOptions, SliceTask, WindowTask
from dask_loader.world import World

Value = TypeVar("Value")

COLUMNS = 40
GROUPS_A_FILE = 100
WINDOW_BYTES = 64 << 20
# Row groups in a window's task: 64 MiB of the rows that `make bench` reads.
SLICES_A_WINDOW = 3
WINDOWS_A_GB = 10**9 / WINDOW_BYTES
# Ranks are dealt over so many processes; more would only take the cores from the others.
MAX_PROCESSES = 4
_START_S = 60.0
_IDLE_S = 5.0


# ---- plans ------------------------------------------------------------------------------


def make_footers(num_groups: int) -> pa.Table:
    """Return made-up footers, a row for each file; sizes of row groups differ."""
    rng = np.random.default_rng(0)
    num_files = -(-num_groups // GROUPS_A_FILE)
    offsets = np.minimum(np.arange(num_files + 1) * GROUPS_A_FILE, num_groups)
    rows = rng.integers(50_000, 150_000, num_groups)
    nulls = rng.integers(0, 2, num_groups)

    def lists(items: Any) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(items))

    schema = pack_schema(pa.schema([(f"c{i}", pa.float32()) for i in range(COLUMNS)]))
    return pa.table(
        {
            "digest": [f"{number:032x}" for number in range(num_files)],
            "schema": pa.array([schema] * num_files, pa.binary()),
            "num_rows": lists(rows),
            "num_bytes": lists(rows * 4 * COLUMNS),
            "survives": lists(np.ones(num_groups, dtype=np.bool_)),
            null_column("c0"): lists(nulls),
        }
    )


def timed(seconds: dict[str, float], name: str, work: Callable[[], Value]) -> Value:
    """Do the work and note how long it took."""
    began = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - began
    return result


def plan_once(num_groups: int, world_size: int, shuffle: bool) -> dict[str, Any]:
    """Plan an epoch of the last rank, in this process, up to its first step."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_rss_bytes(psutil.Process().pid)
    seconds: dict[str, float] = {}
    footers = make_footers(num_groups)
    forms = tuple(Form(f"c{i}", "float32") for i in range(COLUMNS))
    query = FooterQuery(storage=Storage("file"), forms=forms)
    schema = pa.schema([(form.name, pa.float32()) for form in forms])
    options = DatasetOptions(shuffle=shuffle, batch_size=4096, memory_limit="4 GiB")
    world = World(rank=world_size - 1, world_size=world_size, source="arguments")

    def merge() -> Any:
        files = tuple(
            FileEntry(f"/data/part-{i}.parquet", Stamp(1 << 30, str(i)), digest)
            for i, digest in enumerate(footers["digest"].to_pylist())
        )
        return make_catalog(query, schema, files, footers, filter_text="")

    catalog = timed(seconds, "catalog", merge)
    course = Course(catalog, options)
    timed(seconds, "fingerprints", catalog.fingerprints)
    deal = timed(seconds, "len", lambda: course.deal(world))
    run = timed(seconds, "plan", lambda: course.plan_whole(world, 0))
    steps = walk(run.epoch, run.deal, world.rank)
    first = timed(seconds, "first_step", lambda: next(steps))
    timed(seconds, "999_steps_more", lambda: list(islice(steps, 999)))
    timed(seconds, "explain", lambda: _explained(course, world, options))
    upto = ("catalog", "fingerprints", "len", "plan", "first_step")
    return {
        "row_groups": num_groups,
        "world_size": world_size,
        "shuffle": shuffle,
        "num_splits": deal.num_splits,
        "steps": run.num_steps,
        "first_step_rows": sum(piece.stop - piece.start for piece in first.pieces),
        "plan_s": sum(seconds[name] for name in upto),
        "seconds": seconds,
        "peak_bytes": peak_rss_bytes(psutil.Process().pid) - before,
    }


def _explained(course: Course, world: World, options: DatasetOptions) -> str:
    run = course.plan_next(world)
    return explain(course._catalog, options, run, reader="nobody")


def plans(row_groups: list[int], world_sizes: list[int]) -> list[dict[str, Any]]:
    """Plan each size for each number of ranks, in order and shuffled."""
    found = []
    for num_groups in row_groups:
        for world_size in world_sizes:
            for shuffle in (False, True):
                case = [str(num_groups), str(world_size), str(int(shuffle))]
                me = [sys.executable, __file__, "--plan-one", *case]
                text = subprocess.run(me, check=True, stdout=subprocess.PIPE).stdout
                found.append(json.loads(text))
                print(_plan_line(found[-1]), file=sys.stderr)
    return found


def _plan_line(plan: dict[str, Any]) -> str:
    order = "shuffled" if plan["shuffle"] else "in order"
    return (
        f"{plan['row_groups']:>9,} row groups, {plan['world_size']:>2} ranks, {order}: "
        f"{plan['plan_s']:.3f} s, {plan['peak_bytes'] / 2**20:.0f} MiB"
    )


# ---- the scheduler ----------------------------------------------------------------------


def make_task(number: int) -> WindowTask:
    """Return a window's task of the size that our engine sends."""
    forms = tuple(Form(f"f{i:03}_float32", "float32") for i in range(COLUMNS))
    schema = pa.schema([(form.name, pa.float32()) for form in forms])
    options = ReadOptions(
        storage=Storage("file"),
        forms=forms,
        nulls=make_null_policy("error", forms, schema),
    )
    slices = tuple(
        SliceTask(
            f"/data/train/part-{number // GROUPS_A_FILE:05}.parquet",
            Stamp(1 << 30, "1700000000000000000"),
            (number + i) % GROUPS_A_FILE,
            131_072,
            0,
            131_072,
            f"{number:032x}",
        )
        for i in range(SLICES_A_WINDOW)
    )
    return WindowTask(
        options=options,
        slices=slices,
        num_rows=131_072 * SLICES_A_WINDOW,
        key=("window", 0, 0, 0, number),
        num_bytes=WINDOW_BYTES,
    )


async def rank(address: str, name: str, windows: int, ahead: int) -> None:
    """Ask for windows in order, `ahead` of them at a time, as the engine does."""
    async with distributed.Client(
        address, asynchronous=True, set_as_default=False, direct_to_workers=True
    ) as client:
        pending: list[Any] = []
        for number in range(windows + ahead):
            if number < windows:
                future = client.submit(
                    operator.is_,  # on every worker, and its result is as small as ours
                    make_task(number),
                    None,
                    key=(f"read-window-{name}", 0, number),
                    priority=-number,
                    pure=False,
                )
                pending.append(future)
            if number >= ahead and pending:
                future = pending.pop(0)
                if await future is not False:
                    raise AssertionError(f"window {number} of {name} came as another")
                future.release()


async def ranks(address: str, process: int, num_ranks: int, *numbers: int) -> None:
    """Run several ranks in this process, after a line on stdin; "ready" says so."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    names = [f"{process}-{number}" for number in range(num_ranks)]
    await asyncio.gather(*(rank(address, name, *numbers) for name in names))


@contextmanager
def dask_cluster(workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """Start a scheduler and workers as programs; yield its address and process."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        listen = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

        def start(program: str, *options: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.{program}", *options]
            process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process  # type: ignore[no-any-return]

        scheduler = start("dask_scheduler", *listen, "--scheduler-file", str(file))
        for _ in range(workers):
            only = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
            start("dask_worker", "--scheduler-file", str(file), *only)
        with distributed.Client(
            scheduler_file=str(file), set_as_default=False, timeout=_START_S
        ) as client:
            client.wait_for_workers(workers, timeout=_START_S)
            address = client.scheduler.address
        yield address, psutil.Process(scheduler.pid)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def load_once(num_ranks: int, *, windows: int, workers: int) -> dict[str, Any]:
    """Let ranks ask for `windows` windows together, of a scheduler of their own."""
    ahead = max(_MIN_TASKS, _TASKS_PER_SLOT * -(-workers // num_ranks))
    each = max(ahead, windows // num_ranks)
    processes = min(num_ranks, MAX_PROCESSES)
    counts = [len(range(i, num_ranks, processes)) for i in range(processes)]
    with dask_cluster(workers) as (address, scheduler), ExitStack() as stack:
        started = []
        for number, its_ranks in enumerate(counts):
            numbers = [str(number), str(its_ranks), str(each), str(ahead)]
            me = [sys.executable, __file__, "--ranks", address, *numbers]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = subprocess.Popen(me, text=True, **pipes)  # type: ignore[call-overload]
            started.append(stack.enter_context(process))
        for process in started:
            process.stdout.readline()
        cpu, began = _cpu_s(scheduler), time.perf_counter()
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        codes = {process.wait() for process in started}
        if codes != {0}:
            raise SystemExit("a rank failed; see above")
        wall_s = time.perf_counter() - began
        cpu_s = _cpu_s(scheduler) - cpu
        rss = scheduler.memory_info().rss
        idle = asyncio.run(_idle_share(address, num_ranks, scheduler))
    tasks = each * num_ranks
    return {
        "ranks": num_ranks,
        "workers": workers,
        "ahead": ahead,
        "tasks": tasks,
        "wall_s": wall_s,
        "tasks_s": tasks / wall_s,
        "scheduler_cpu_s_per_task": cpu_s / tasks,
        "scheduler_cpu_s_per_gb": cpu_s / tasks * WINDOWS_A_GB,
        "scheduler_busy": cpu_s / wall_s,
        "gb_s_at_one_core": tasks / cpu_s / WINDOWS_A_GB,
        "scheduler_rss_bytes": rss,
        "scheduler_idle_share": idle,
    }


async def _idle_share(address: str, num_ranks: int, scheduler: psutil.Process) -> float:
    """Return the scheduler's CPU share while ranks are connected and ask for nothing."""
    async with AsyncExitStack() as stack:
        for _ in range(num_ranks):
            client = distributed.Client(
                address, asynchronous=True, set_as_default=False
            )
            await stack.enter_async_context(client)
        cpu = _cpu_s(scheduler)
        await asyncio.sleep(_IDLE_S)
        return (_cpu_s(scheduler) - cpu) / _IDLE_S


def loads(num_ranks: list[int], *, windows: int, workers: int) -> list[dict[str, Any]]:
    """Load a scheduler with each number of ranks."""
    found = []
    for number in num_ranks:
        found.append(load_once(number, windows=windows, workers=workers))
        print(_load_line(found[-1]), file=sys.stderr)
    return found


def _load_line(load: dict[str, Any]) -> str:
    return (
        f"{load['ranks']:>2} ranks, {load['ahead']} ahead: {load['tasks_s']:.0f} tasks/s, "
        f"scheduler {1e3 * load['scheduler_cpu_s_per_task']:.2f} ms CPU a task = "
        f"{load['scheduler_cpu_s_per_gb']:.4f} s/GB, busy "
        f"{load['scheduler_busy']:.0%}, {load['scheduler_rss_bytes'] / 2**20:.0f} MiB"
    )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("all", "plan", "scheduler"), default="all")
    parser.add_argument(
        "--row-groups", nargs="+", type=int, default=[10**n for n in range(3, 7)]
    )
    parser.add_argument("--world-sizes", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--ranks-at-once", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument(
        "--windows", type=int, default=2000, help="of all ranks together"
    )
    parser.add_argument("--workers", type=int, default=2, help="Dask workers")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plan-one", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ranks", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan_one:
        num_groups, world_size, shuffle = args.plan_one
        print(json.dumps(plan_once(num_groups, world_size, bool(shuffle))))
        return
    if args.ranks:
        address, *numbers = args.ranks
        asyncio.run(ranks(address, *map(int, numbers)))
        return
    figures: dict[str, Any] = {"machine": machine()}
    if args.part != "scheduler":
        figures["plans"] = plans(args.row_groups, args.world_sizes)
    if args.part != "plan":
        figures["scheduler"] = loads(
            args.ranks_at_once, windows=args.windows, workers=args.workers
        )
    text = json.dumps(figures, indent=1)
    if args.json:
        args.json.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
