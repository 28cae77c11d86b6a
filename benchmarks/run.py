"""Read the same files to the same tensors with every contestant, in one run.

LIMIT is what decoding alone takes (contestants/limit.py); the others make all batches
and touch every column of each. Each contestant lives in a process of its own and is told
to read one epoch at a time, so they take turns, and a slow minute of the machine hits
all of them. The first round warms up, is checked (rows, and the sum of each column,
beside what the set holds), and is where memory and mixing are measured; the figures
are medians of the others. Where a set is larger than 2 GB, its first GB is left out.

    python benchmarks/run.py --sets tabular --scale full --json out.json --plot out.png
    python benchmarks/run.py --peers .venv-peers          (make bench-peers makes these)

A contestant that cannot read a set is reported with its error; one that delivers other
rows than the set has is reported as wrong, and has no figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from check import fault
from child import Child, ContestantError
from field import Entry, choose, names
from report import (
    add_ratios,
    full_shuffle_row_groups,
    machine,
    summarise,
    table,
)
from sets import SCALES, SETS, make, manifest_of
from watch import MemoryWatch, machine_cpu_s, peak_rss_bytes, tree, tree_cpu_s

GB = 10**9
# Decoded bytes of a shuffle buffer, for contestants that have one: our default window.
BUFFER = 64 * 2**20
ORDERS = {"sequential": False, "shuffled": True}
# Ray and clusters take seconds to start; Lance converts the set first.
_OPEN_S = 600.0


class Turn:
    """One contestant on one set in one order: its process, and what it answered."""

    def __init__(
        self, entry: Entry, *, shuffle: bool, args: argparse.Namespace
    ) -> None:
        self.entry = entry
        self.shuffle = shuffle
        self.args = args
        self.child: Child | None = None
        self.rounds: list[dict[str, Any]] = []
        self.result: dict[str, Any] = {
            "contestant": entry.name,
            "shuffle": shuffle,
            "num_workers": entry.options.get("num_workers", 0),
            "status": "ok",
            "error": None,
        }

    def open(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Start the process and let it open the set."""
        self.result["set"] = manifest["set"]
        case = {
            "path": str(folder.absolute()),
            "kinds": manifest["kinds"],
            "batch_rows": manifest["batch_rows"],
            "num_rows": manifest["rows"],
            "row_group_rows": manifest["row_group_rows"],
            "buffer_rows": manifest["rows"] * BUFFER // manifest["decoded_bytes"],
            "shuffle": self.shuffle,
            **self.entry.options,
        }
        self._guarded(lambda: self._open(case))

    def warm_up(self, manifest: dict[str, Any]) -> None:
        """Read an epoch, check it, and measure memory and mixing."""
        self._guarded(lambda: self._warm_up(manifest))

    def take(self, number: int, manifest: dict[str, Any]) -> None:
        """Read an epoch that counts."""
        skip = 0
        if manifest["decoded_bytes"] > 2 * GB:
            skip = manifest["rows"] * GB // manifest["decoded_bytes"]

        def take() -> None:
            answer = self._epoch(number, skip_rows=skip, cut_s=self.args.cut_s)
            self.rounds.append(answer)
            wrong = fault(manifest, answer) if answer["whole"] else None
            if wrong is not None:
                self._fail("wrong", wrong)

        self._guarded(take)

    def close(self) -> None:
        """End the process, and all that it started."""
        if self.child is not None:
            for process in tree(self.child.process)[:1]:
                self.result.setdefault("memory", {})["consumer_peak_rss"] = (
                    peak_rss_bytes(process.pid)
                )
            self.child.close()
            self.child = None

    def finish(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Return the result; complete after the last round."""
        if self.result["status"] == "ok":
            per_row = manifest["decoded_bytes"] / manifest["rows"]
            self.result |= summarise(self.rounds, bytes_per_row=per_row)
        kept = (
            "seconds",
            "first_batch_s",
            "cpu_s",
            "tree_cpu_s",
            "others_cpu_s",
            "rows",
        )
        self.result["rounds"] = [{key: r[key] for key in kept} for r in self.rounds]
        return self.result

    def _open(self, case: dict[str, Any]) -> None:
        self.child = Child(self.entry.command(self.args.peers))
        answer = self.child.ask({"do": "open", "case": case}, within_s=_OPEN_S)
        self.result["open_s"] = answer["open_s"]

    def _warm_up(self, manifest: dict[str, Any]) -> None:
        assert self.child is not None
        with MemoryWatch(self.child.process) as memory:
            answer = self._epoch(0, look_at_order=True)
        consumer = self.child.process.pid
        self.result |= {
            "mixing": None if not answer["sums"] else answer["mixing"],
            "delivers": answer["delivers"],
            "batches": answer["batches"],
            "first_batch_cold_s": answer["first_batch_s"],
            "memory": {
                "tree_before_pss": memory.before_bytes,
                "tree_peak_pss": memory.peak_tree_bytes,
                "consumer_peak_pss": max(
                    (n for (pid, _), n in memory.peak_of.items() if pid == consumer),
                    default=0,
                ),
                "peak_pss_of_each": [
                    {"process": name, "bytes": num_bytes}
                    for (_, name), num_bytes in sorted(
                        memory.peak_of.items(), key=lambda item: -item[1]
                    )
                ],
            },
        }
        wrong = fault(manifest, answer)
        if wrong is not None:
            self._fail("wrong", wrong)

    def _epoch(
        self,
        number: int,
        *,
        look_at_order: bool = False,
        skip_rows: int = 0,
        cut_s: float | None = None,
    ) -> dict[str, Any]:
        assert self.child is not None
        before, machine_before = tree_cpu_s(self.child.process), machine_cpu_s()
        answer = self.child.ask(
            {
                "do": "epoch",
                "number": number,
                "look_at_order": look_at_order,
                "skip_rows": skip_rows,
                "cut_s": cut_s,
            },
            within_s=self.args.epoch_s,
        )
        used = tree_cpu_s(self.child.process) - before
        answer["tree_cpu_s"] = used
        answer["others_cpu_s"] = max(0.0, machine_cpu_s() - machine_before - used)
        return answer

    def _guarded(self, step: Any) -> None:
        if self.result["status"] != "ok":
            return
        try:
            step()
        except (ContestantError, FileNotFoundError) as error:
            self._fail("cannot", str(error))

    def _fail(self, status: str, error: str) -> None:
        """Leave the run; the others go on."""
        self.result |= {"status": status, "error": error}
        self.close()


def compete(
    folder: Path, manifest: dict[str, Any], *, shuffle: bool, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Let all who take part read one set in one order, in turns."""
    entries = choose(
        manifest["set"],
        shuffle=shuffle,
        only=args.only,
        peers=args.peers,
        also=args.also,
    )
    with ExitStack() as stack:
        turns = []
        for entry in entries:
            turn = Turn(entry, shuffle=shuffle, args=args)
            stack.callback(turn.close)
            turn.open(folder, manifest)
            turn.warm_up(manifest)
            turns.append(turn)
            say(f"  {entry.name}: {turn.result['status']}")
        for number in range(1, args.repeats + 1):
            for turn in turns:
                turn.take(number, manifest)
            say(f"  round {number} of {args.repeats}")
    return [turn.finish(manifest) for turn in turns]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table for each set and order, write JSON and a plot if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sets", nargs="*", choices=SETS, default=list(SETS), metavar="SET")
    add("--orders", nargs="*", choices=ORDERS, default=list(ORDERS), metavar="ORDER")
    add("--scale", choices=SCALES, default="small")
    add("--only", nargs="*", choices=names(), default=[], metavar="NAME")
    add(
        "--also",
        nargs="*",
        type=Path,
        default=[],
        help="contestants of your own: files",
    )
    add("--peers", type=Path, help="folder with the peers' environments")
    add("--repeats", type=int, default=5, help="rounds that count")
    add(
        "--cut-s", type=float, default=30.0, help="longest epoch of a round that counts"
    )
    add("--epoch-s", type=float, default=600.0, help="longest wait for an epoch")
    add("--folder", type=Path, default=Path("demo-data/bench-sets"))
    add("--json", type=Path, help="write the results here")
    add("--plot", type=Path, help="draw a PNG here (needs matplotlib)")
    args = parser.parse_args(argv)
    results: list[dict[str, Any]] = []
    manifests = {}
    for name in args.sets:
        folder = make(args.folder, SETS[name], args.scale)
        manifest = json.loads(manifest_of(folder).read_text())
        manifests[name] = {
            key: value
            for key, value in manifest.items()
            if key not in ("kinds", "sums", "absolute_sums")
        } | {"full_shuffle_row_groups": full_shuffle_row_groups(manifest)}
        for order in args.orders:
            gigabytes = manifest["decoded_bytes"] / GB
            title = f"{name}, {order}: {manifest['rows']:,} rows, {gigabytes:.2f} GB"
            say(title)
            found = compete(folder, manifest, shuffle=ORDERS[order], args=args)
            add_ratios(found)
            results += found
            print(f"\n{title}\n{table(found)}", flush=True)
            report = {
                "machine": machine(),
                "options": {k: str(v) for k, v in vars(args).items()},
                "sets": manifests,
                "results": results,
            }
            if args.json:  # after each, so that a run that is stopped leaves something
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        from plot import draw

        draw(report, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
