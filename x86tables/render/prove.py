"""What `prove` prints: what Bochs did with an image's CPUs, what QEMU did with a configuration's or with a guest."""

from __future__ import annotations

from ..delivery.scenarios import NOT_APPLICABLE
from ..delivery.simulate import UNKNOWN
from ..machine.symbols import printable
from ..qemulog.report import report
from ..tables.vectors import label
from . import log
from .lines import coloured, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..machine.image import Snapshot
    from ..machine.symbols import Symbols
    from ..prove.overflow import Overflow
    from ..prove.qemu import Ending
    from ..prove.run import Proof, TrialResult

OBSERVATIONS = 12  # of a variant that are shown, the first ones
OUTPUT = 12  # lines of a guest's own output that are shown, the last ones


def prove(image: Snapshot, proofs: Sequence[Proof], cpu: str, events: bool) -> Iterator[str]:
    """An image's CPUs on Bochs; with `events` those of every variant, else only of one that has the verdict."""
    yield f"{image.path}: {image.format}, on {cpu}"
    for one in proofs:
        yield ""
        yield f"CPU {one.machine.cpu}  {one.verdict}{_agreement(one)}"
        for reason in one.reasons:
            yield f"  {reason}"
        for name, results in one.scenarios.items():
            if not results and one.verdict == NOT_APPLICABLE:
                continue
            ran = [result for result in results if not result.trial.why]
            yield f"  {name}: {_count(results, ran)}"
            shown = events
            for result in ran:
                if events or not result.agrees or (not shown and result.verdict == one.verdict):
                    shown = True
                    yield from _variant_lines(result, image.symbols)
            for result in results:
                if result.trial.why:
                    yield f"    not run: {result.trial.name}: {result.trial.why}"
        for name, why in one.not_run.items():
            yield f"  {name}: not run: {why}"


def _count(results: Sequence[TrialResult], ran: Sequence[TrialResult]) -> str:
    if not results:
        return "not applicable"
    if not ran:
        return f"none of {len(results)} variants can be run"
    return f"{sum(result.agrees for result in ran)} of {len(ran)} variants agree event by event"


def _agreement(one: Proof) -> str:
    """What the verdict is to the prediction."""
    if one.verdict == NOT_APPLICABLE == one.predicted:
        return ""
    if one.verdict == UNKNOWN != one.predicted:
        return f" ({one.predicted} predicted)"
    return ", as predicted" if one.agrees else f", NOT AS PREDICTED ({one.predicted})"


def _variant_lines(result: TrialResult, symbols: Symbols) -> Iterator[str]:
    yield f"    {result.trial.name}: {result.verdict}"
    observations = () if result.event_log is None else result.event_log.observations
    for one in observations[:OBSERVATIONS]:
        name = symbols.name(one.rip) if one.rip is not None else ""
        yield f"      {one}{f' ({name})' if name else ''}"
    if len(observations) > OBSERVATIONS:
        yield f"      ... {len(observations) - OBSERVATIONS} more"
    if result.event_log is not None and result.event_log.needs:
        yield f"      needs more: {result.event_log.needs}"
    if result.deviations:
        yield f"      differs by what docs/deviations.md calls {', '.join(result.deviations)}: {result.differs}"
    elif result.differs:
        yield f"      differs: {result.differs}"


def overflow(image: Snapshot, found: Sequence[Overflow], cpu: str) -> Iterator[str]:
    """A stack overflow on each CPU of a configuration."""
    yield f"{image.path}: {image.format}, a stack overflow on {cpu} (TCG)"
    for remark in image.remarks:
        yield from wrap(f"  note: {remark}", "    ")
    for one in found:
        agree = f", NOT AS PREDICTED: {one.differs}" if one.differs else ", as predicted"
        yield ""
        yield f"CPU {one.machine.cpu}  {coloured(one.verdict)}{agree if one.guard else ''}"
        yield from wrap(f"  {one.reason}", "    ")
        if one.guard is None or one.initial_rsp is None:
            continue
        yield f"  recursion from RSP {one.initial_rsp:#x} down to the guard [{one.guard[0]:#x}, {one.guard[1]:#x})"
        if one.cr2 is not None:
            inside = one.guard[0] <= one.cr2 < one.guard[1]
            yield f"  the first page fault: CR2 {one.cr2:#x}{', in the guard' if inside else ', NOT in the guard'}"
        if one.vector is not None:
            code = "" if one.error_code is None else f", error code {one.error_code:#x}"
            where = "the current stack" if one.stack == "current" else one.stack
            yield f"  the handler of {label(one.vector)}: on {where}, RSP {one.rsp or 0:#x}{code}"


def guest(title: str, ending: Ending, symbols: Symbols, cpu: str) -> Iterator[str]:
    """A guest's end, and what its log shows."""
    yield f"{printable(title)}: on {cpu} (TCG)"
    yield ""
    yield coloured(ending.verdict)
    yield from wrap(f"  {ending.reason}", "    ")
    yield f"  {'stopped by x86tables' if ending.status is None else f'QEMU ended with status {ending.status}'}"
    lines = ending.output.decode(errors="replace").splitlines()
    if lines:
        yield ""
        yield "its output" + (f", the last {OUTPUT} lines" if len(lines) > OUTPUT else "")
        yield from (f"  {''.join(c if c.isprintable() else ' ' for c in line)[:96]}" for line in lines[-OUTPUT:])
    yield ""
    yield from log.text("its log", report(ending.log), symbols)
