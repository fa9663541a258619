"""Compare our deliveries with Bochs' on many machines: `python -m differential.bochs 100000`.

Every case has to agree event by event, down to the bytes in memory, or to differ exactly by deviations of Bochs that
are listed in docs/deviations.md.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter

from differential.machines import Case, case
from x86tables.delivery.state import CpuState
from x86tables.prove import workers
from x86tables.prove.bochs import load
from x86tables.prove.bochs_deviations import predict_bochs
from x86tables.prove.event_log import ENTERED, RAISED, differences, predict
from x86tables.prove.stimulus import CODE
from x86tables.records import Record
from x86tables.tables.vectors import label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from x86tables.prove.bochs_cpu import Runner


class Result(Record):
    """How a comparison went: `differs` says where, "" when all agrees; `deviations` explain a known difference."""

    number: int
    outcome: str
    faults: tuple[str, ...]
    checks: tuple[str, ...]
    entered: tuple[str, ...]
    stimulus: str
    mutations: tuple[str, ...]
    deviations: tuple[str, ...] = ()
    differs: str = ""


def compare(number: int, case: Case, runner: Runner) -> Result:
    """Run one case on both."""
    ours = predict(CpuState(case.machine), case.stimulus, case.handler_stack)
    theirs = runner.run(case.machine, case.stimulus, case.handler_stack, ours.most)
    found, deviations = differences(ours, theirs), list[str]()
    if found:
        ours_there, met = predict_bochs(case.machine, case.stimulus, case.handler_stack)
        if ours_there.most != ours.most:
            theirs = runner.run(case.machine, case.stimulus, case.handler_stack, ours_there.most)
        if met and not differences(ours_there, theirs):
            found, deviations = [], sorted(met)
    faults = tuple(label(one.vector) for one in ours.observations if one.what == RAISED)
    checks = tuple(re.sub(r" \d+$", "", one.check) for one in ours.observations if one.check)
    handlers = [one.vector for one in ours.observations if one.what == ENTERED]
    entered = tuple(label(vector) if vector < 32 else "32..255" for vector in handlers)
    kinds = tuple(mutation.split(":")[0] for mutation in case.mutations)
    return Result(
        number, ours.outcome, faults, checks, entered, case.stimulus.kind, kinds, tuple(deviations), "; ".join(found)
    )


def prepare(seed: int) -> Callable[[int], Result]:
    """What a child does with the number of a case."""
    runner = load()
    return lambda number: compare(number, case(seed, number), runner)


# What so many machines meet, whatever the seed: when they do not, they are not what they were made for any more.
ENOUGH = 3000
MET = {
    "stimulus": {*CODE, "int", "interrupt", "nmi", "exception"},
    "outcome": {"runs", "shutdown", "goes on", "nothing"},
    "fault": {"#DE", "#DB", "#UD", "#TS", "#NP", "#SS", "#GP", "#PF", "#DF", "#MC"},
    "refused at": {
        "IDT limit", "IDT entry", "gate type", "gate DPL", "gate P", "gate selector", "GDT limit", "GDT entry",
        "LDT limit", "LDT entry", "segment type", "segment DPL", "segment P", "segment L, D", "TSS limit", "TSS RSP0",
        "TSS IST1", "gate offset", "push SS", "push RFLAGS", "push RIP", "accessed bit",
    },
    "deviation": {
        "rip_check_after_push", "dword3_type", "ld_before_p", "ss_err_old_ss", "conf_push_dpl", "smap_ac_cpl3",
        "smap_ac_cpl0", "nmi_fetch_rip",
    },
}  # fmt: skip
COUNTED = ("stimulus", "outcome", "fault", "refused at", "entered", "mutation", "deviation")


class Tally:
    """What was covered."""

    def __init__(self) -> None:
        self.counts = {name: Counter[str]() for name in COUNTED}
        self.differ: list[tuple[int, str]] = []
        self.total = 0

    def add(self, number: int, result: Result | workers.Crashed) -> None:
        self.total += 1
        if isinstance(result, workers.Crashed):
            self.differ.append((number, str(result)))
            return
        for name, found in (
            ("stimulus", [result.stimulus]),
            ("outcome", [result.outcome]),
            ("fault", result.faults),
            ("refused at", result.checks),
            ("entered", result.entered),
            ("mutation", result.mutations),
            ("deviation", result.deviations),
        ):
            self.counts[name].update(found)
        if result.differs:
            self.differ.append((number, result.differs))

    def document(self) -> dict[str, Any]:
        """All of it, for `merge`."""
        return {"total": self.total, "differ": self.differ, "counts": self.counts}

    def merge(self, document: dict[str, Any]) -> None:
        """Add what another tally has."""
        self.total += document["total"]
        self.differ += [(number, why) for number, why in document["differ"]]
        for name, counts in document["counts"].items():
            self.counts[name].update(counts)

    def unmet(self) -> list[str]:
        """What of MET did not come up."""
        return [f"{name}: {what}" for name, wanted in MET.items() for what in sorted(wanted - self.counts[name].keys())]

    def lines(self) -> Iterable[str]:
        """The counts."""
        for name, counts in self.counts.items():
            yield f"{name}:"
            row = "   "
            for what, count in counts.most_common():
                if len(row) + len(what) + 10 > 98:
                    yield row
                    row = "   "
                row += f" {what} {count},"
            yield row.rstrip(",")
        yield f"{self.total} cases, {len(self.differ)} unexplained disagreements"
        for number, differs in self.differ[:20]:
            yield f"  case {number}: {differs}"


def main(arguments: Sequence[str]) -> int:
    """Compare, and report."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m differential.bochs", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=3000, help="how many cases")
    parser.add_argument("--seed", type=int, default=1, help="of the series")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="for a part of many: print what was covered, to be merged")
    args = parser.parse_args(arguments)
    tally, began = Tally(), time.monotonic()
    numbers = range(args.first, args.first + args.count)
    for number, result in workers.run(lambda: prepare(args.seed), numbers, args.workers):
        tally.add(number, result)
        if tally.total % 50 == 0 or tally.total == args.count:
            progress(tally.total, args.count, time.monotonic() - began, len(tally.differ))
    if args.json:
        print(json.dumps(tally.document()))
        return 1 if tally.differ else 0
    return report(tally)


def report(tally: Tally) -> int:
    """Print what was covered; 1 when anything differs that is not explained, or when many machines do not meet all of
    MET."""
    print(*tally.lines(), sep="\n")
    unmet = tally.unmet() if tally.total >= ENOUGH else []
    if unmet:
        print("never met:", ", ".join(unmet))
    return 1 if tally.differ or unmet else 0


def progress(done: int, count: int, seconds: float, differ: int) -> None:
    """A bar on a terminal, elsewhere a line now and then."""
    said = f"{done}/{count} {done / seconds:.0f}/s, {differ} differ"
    if sys.stderr.isatty():
        end = "\n" if done == count else ""
        print(f"\r[{'#' * (40 * done // count):40}] {said}", end=end, file=sys.stderr, flush=True)
    elif done % 10_000 == 0:
        print(said, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
