"""Stacks as columns of an address space: the stack in use with what an overflow meets, and every interrupt stack."""

from __future__ import annotations

from ...delivery.occupants import Occupant
from ...delivery.stacks import GUARDED, SILENT
from ...delivery.stacks import UNKNOWN as NOT_KNOWN
from ...machine.probe import Fault, Unknown
from ..svg import Band, column
from ..verdict import users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...assessment import Assessment
    from ...delivery.events import Step
    from ...delivery.stacks import InterruptStack
    from ..svg import Picture


def pictures(assessment: Assessment) -> Iterator[tuple[str, Picture]]:
    """(caption, picture) of the stack in use and of the interrupt stacks; of those that are known."""
    if assessment.stack.rsp is not None:
        yield (
            "The stack in use, and what an overflow of it meets",
            column("the stack in use", list(_in_use(assessment))),
        )
    if assessment.interrupt_stacks:
        caption = "The interrupt stacks, from high addresses to low"
        yield caption, column("the interrupt stacks", list(_interrupt_stacks(assessment)))


def _in_use(assessment: Assessment) -> Iterator[Band]:
    stack, guard = assessment.stack, assessment.stack.guard
    yield Band("used", "in use")
    top = "" if guard is None else f"{guard.top:#x}"
    if stack.verdict == GUARDED and guard is not None:
        push = _failed_push(assessment)
        if stack.distance:
            yield Band("free", f"{stack.distance:,} bytes free", f"RSP {stack.rsp:#x}", size=stack.distance)
        else:
            top = f"RSP {stack.rsp:#x}"
        if push is not None:
            yield Band("push", f"{push.step}: refused", top, (f"at {push.address:#x}", push.found))
            yield Band("guard", f"guard: {guard.kind.value}")
        else:
            yield Band("guard", f"guard: {guard.kind.value}", top, (stack.reason,))
        if stack.beyond:
            yield Band("free", "what lies below", "", (stack.beyond,))
        return
    words = {SILENT: "no guard: an overflow runs on", NOT_KNOWN: "not known"}.get(stack.verdict, "not judged")
    kind = {SILENT: "over"}.get(stack.verdict, "unknown")
    yield Band(kind, words, f"RSP {stack.rsp:#x}", (stack.reason,), stack.distance or 0)
    if guard is not None:
        yield Band("guard", f"refuses a push: {guard.kind.value}", top)


def _failed_push(assessment: Assessment) -> Step | None:
    """The push that fails when the stack overflows, where it is one into the guard of the stack in use."""
    trace, guard = assessment.trace, assessment.stack.guard
    if trace is None or guard is None:
        return None
    attempt = trace.deliveries[0].attempts[0]
    step = attempt.steps[-1]
    within = step.address is not None and guard.top - 4096 <= step.address < guard.top
    return step if attempt.fault is not None and step.step.startswith("push ") and within else None


def _interrupt_stacks(assessment: Assessment) -> Iterator[Band]:
    by_top: dict[int, list[InterruptStack]] = {}
    for stack in assessment.interrupt_stacks:
        by_top.setdefault(stack.extent.top, []).append(stack)
    bottom: int | None = None
    handled = assessment.handled_by and assessment.handled_by[1]
    for top, stacks in sorted(by_top.items(), reverse=True):
        if bottom == top:
            yield Band("edge", "")
        if bottom is not None and bottom - top > 0:
            yield Band("gap", f"... {bottom - top:,} bytes ..." if bottom - top < 1 << 30 else "...")
        extent, below = stacks[0].extent, stacks[0].extent.below
        names = ", ".join(stack.pointer.name for stack in stacks)
        notes = [f"{stack.pointer.name}: {users(stack) or 'no gate'}" for stack in stacks]
        if len(stacks) > 1:
            notes.append("one stack for all of them")
        size = f"{names}: {extent.size:,} bytes" if below is not None else f"{names}: {extent.size:,} bytes or more"
        shared = len(stacks) > 1 and sum(bool(stack.pointer.vectors) for stack in stacks) > 1
        kind = "stack" if extent.size and not shared else "over"
        if any(stack.pointer.name == handled for stack in stacks):
            notes.append("the handler runs here")
        bottom = extent.bottom
        if not extent.size and below is not None:
            known = "over" if any(stack.pointer.vectors for stack in stacks) else "free"
            yield Band(known if extent.known else "unknown", size, f"{top:#x}", (*notes, below.why))
            continue
        if bottom in by_top:
            notes.append("no guard below")
        yield Band(kind, size, f"{top:#x}", tuple(notes), extent.size)
        if isinstance(below, Fault):
            yield Band("guard", below.why, f"{bottom:#x}")
        elif isinstance(below, Occupant) and bottom not in by_top:
            yield Band("over", f"no guard: {below.why} follows", f"{bottom:#x}")
        elif isinstance(below, Unknown):
            yield Band("unknown", below.why, f"{bottom:#x}")
