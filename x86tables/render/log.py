"""A QEMU log as text: the headline, each chain of faults with its first cause, the counts."""

from __future__ import annotations

from ..checks import RULES
from ..qemulog.chains import CUT, DF, EXCEPTION, GUEST, INT, INTERRUPT, PF, SHUTDOWN
from ..qemulog.report import NO_IDT, OVERFLOW, RESET, STRAY, UNTAKEN
from ..tables import vectors
from ..tables.selector import PageFaultErrorCode, SelectorErrorCode
from . import describe as words
from .lines import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..machine.symbols import Symbols
    from ..qemulog.chains import Chain, Count, Log, Repetition
    from ..qemulog.entries import Delivering
    from ..qemulog.report import LogReport, ReportedChain, ReportedEvent

SHOWN = 8  # chains shown in full, and places at which one happened too
HEADLINES = {
    "triple-fault": "Triple fault: the processor shut down",
    CUT: "The log ends where a delivery has failed: how it ended is not known",
    "loops": "It loops: the same exception again and again",
    "survives": "A double fault whose handler was entered: no triple fault",
    "irq-as-exception": "No fault: a hardware interrupt arrived on an exception vector",
    "reset": "No fault: the machine was reset deliberately, by a triple fault",
    "delivery-failed": "An event could not be delivered: the handler of another exception was entered in its place",
    GUEST: "A shutdown of a nested guest, not a triple fault of this machine",
    "nothing": "Nothing went wrong in delivery: no triple fault, no double fault",
}


# One event, one chain


def place(event: Delivering, symbols: Symbols) -> str:
    """`0x8:0x100118 <overflow at kernel.asm:97>`."""
    return f"{event.cs:#x}:{event.rip:#x}{_named(event.rip, symbols)}"


def _named(address: int, symbols: Symbols) -> str:
    """` <name at file:line>`, or nothing."""
    name = symbols.place(address)
    return f" <{name}>" if name else ""


def what(one: ReportedEvent, first: bool, symbols: Symbols) -> str:
    """What an event of a chain was."""
    event, origin = one.attempt.event, one.attempt.origin
    if origin == INTERRUPT:
        return "a hardware interrupt"
    if origin == INT:
        return f"the instruction INT {event.vector:#x}"
    if origin != EXCEPTION:
        return "an NMI" if event.vector == 2 else "neither an exception nor from an interrupt controller"
    if event.vector == PF:
        text = words.page_fault_error(PageFaultErrorCode.from_int(event.error_code & 0xFFFFFFFF))
        if event.cr2 is None:
            return text
        near = None if one.below_rsp is None else f", {one.below_rsp} bytes below RSP {event.rsp:#x}"
        return f"{text}, at {event.cr2:#x}{near or _named(event.cr2, symbols)}"
    if event.vector == DF and not first:
        return "a fault during the delivery of another"
    if event.vector < 32 and vectors.EXCEPTIONS[event.vector].error_code and event.error_code:
        code = SelectorErrorCode.from_int(event.error_code & 0xFFFFFFFF)
        if one.named is not None:
            old = ", written as vector*16+2 by QEMU 7.2 and older" if code.index != one.named else ""
            return f"error code {event.error_code:#x}: gate {one.named}{old}"
        return f"error code {event.error_code:#x}: {words.selector_error(code)}"
    return vectors.EXCEPTIONS[event.vector].name if event.vector < 32 else "an exception"


def gate(one: ReportedEvent, symbols: Symbols) -> str | None:
    """The gate of an event, from the image: where it leads, by name."""
    if one.gate is None:
        return None if one.gate_error is None else f"gate {one.attempt.event.vector}: {one.gate_error}"
    target = _named(one.gate.offset, symbols) if one.gate.p else ""
    return f"gate {one.attempt.event.vector}: {words.gate(one.gate)}{target}"


def failed(one: ReportedEvent, symbols: Symbols) -> str | None:
    """Why the delivery of an event failed; None when it did not."""
    failure, step = one.attempt.failure, one.step
    if failure is None or step is None:
        return None if failure is None else failure.why
    stack = "" if one.own_stack is None else " on its own stack" if one.own_stack else " on the stack in use"
    where = "" if step.address is None else f" at {step.address:#x}{_named(step.address, symbols)}"
    return f"{vectors.label(failure.fault)}: {step.step}{stack}{where}: {step.found}"


def cause(one: ReportedChain, symbols: Symbols) -> str:
    """The first cause, in a sentence."""
    first, event = one.chain.attempts[0], one.chain.first
    label, at = vectors.label(event.vector), place(event, symbols)
    if one.cause == STRAY:
        line = f"IRQ {event.vector - 8}" if 8 <= event.vector < 16 else "a hardware interrupt"
        timer = " (the timer)" if event.vector == 8 else ""
        return (
            f"{line}{timer} arrived on vector {event.vector}, which belongs to {words.vector(event.vector)}: "
            "the PIC is not remapped. It is not an exception: no check_exception line leads to it, and the CPU "
            "pushes no error code. Remap the PIC (to 32, say), or mask it, before STI"
        )
    if one.cause == RESET:
        return f"INT {event.vector} at {at} after an empty IDT was loaded: a deliberate reset, as firmware does it"
    if one.cause == OVERFLOW:
        return f"the stack ran out in {at}: the page below RSP {event.rsp:#x} cannot be written"
    if one.cause == NO_IDT:
        return f"{label} at {at}, with no IDT loaded"
    if one.cause == UNTAKEN:
        interrupt = f"INT {event.vector:#x} at {at}"
        if first.origin == INTERRUPT:
            interrupt = f"a hardware interrupt on vector {event.vector:#x}"
        return f"{interrupt}, and no gate accepts it"
    return f"{label} at {at}"


# The whole log


def text(path: str, report: LogReport, symbols: Symbols, remarks: Sequence[str] = ()) -> Iterator[str]:
    """The lines that `log` prints; `remarks` are those on the image and its symbols."""
    log = report.log
    yield f"{path}: {log.lines} lines of QEMU's log"
    for remark in remarks:
        yield from wrap(f"  note: {remark}", "    ")
    yield ""
    yield from wrap(f"{HEADLINES[log.outcome]}{when(report)}.", "  ")
    groups = report.alike
    for alike in groups[:SHOWN]:
        yield ""
        yield from _chain(alike[0], symbols)
        yield from _elsewhere(alike[1:], symbols)
    hidden = sum(len(alike) for alike in groups[SHOWN:]) + log.others
    if hidden:
        yield ""
        yield f"{hidden} more chains like these (--format json has {len(report.chains)})"
    if log.repeated is not None:
        yield ""
        yield from _repeated(log, symbols)
    yield ""
    yield from _counts(log)
    if log.last is not None and not log.chains:
        event = log.last.event
        yield ""
        yield from _wrapped(
            "the last exception  ",
            f"{vectors.label(event.vector)} in ring {event.cpl} at {place(event, symbols)}, line {event.line}",
        )
    if log.resets:
        number = f"{log.resets} reset blocks" if log.resets > 1 else "1 reset block"
        yield f"{number}: power-on prints them too; only a `Triple fault` line means a triple fault"


def when(report: LogReport) -> str:
    """The line that the headline is about."""
    chains = report.deciding
    if not chains:
        return ""
    times = sum(chain.times for chain in chains)
    more = f", and {times - 1} more time{'s' if times > 2 else ''}" if times > 1 else ""
    return f", line {min(chain.end for chain in chains)}{more}"


def name(one: ReportedEvent) -> str:
    """`#PF`, `irq 8`."""
    vector = one.attempt.event.vector
    return f"irq {vector}" if one.attempt.origin == INTERRUPT else vectors.label(vector)


def ending(chain: Chain) -> str:
    """How a chain ended, where it did not end in a handler; "" there."""
    if chain.outcome == SHUTDOWN:
        return f"SHUTDOWN, line {chain.end}"
    if chain.outcome == GUEST:
        return f"a shutdown of a nested guest, not a triple fault of this machine, line {chain.end}"
    return f"the log ends here, line {chain.end}: how it ended is not known" if chain.outcome == CUT else ""


def _chain(one: ReportedChain, symbols: Symbols) -> Iterator[str]:
    chain = one.chain
    for number, reported in enumerate(one.events):
        event = reported.attempt.event
        head = f"  {name(reported):<5} "
        ring = f"ring {event.cpl}, line {event.line}"
        if number and event.rip == chain.first.rip:
            yield from _wrapped(head, f"{what(reported, not number, symbols)}; line {event.line}")
        else:
            yield from _wrapped(head, f"at {place(event, symbols)}, {ring}")
            yield from _wrapped("", what(reported, not number, symbols))
        if (line := gate(reported, symbols)) is not None:
            yield from _wrapped("", line)
        why = failed(reported, symbols)
        yield from _wrapped("", f"not delivered: {why}" if why else "its handler was entered")
    if said := ending(chain):
        yield f"        => {said}"
    if chain.times > 1:
        yield f"        {chain.times} times, the last one from line {chain.last}"
    yield ""
    yield from _wrapped("  first cause  ", cause(one, symbols))
    if one.rule is not None:
        yield from _wrapped("  rule         ", f"{one.rule}, {titles()[one.rule]}: x86tables explain {one.rule}")
        if not one.certain:
            yield "               as far as the log shows; --in IMAGE, with a memory dump, makes it certain"


def _elsewhere(alike: list[ReportedChain], symbols: Symbols) -> Iterator[str]:
    """Where else the same happened."""
    if said := elsewhere(alike, symbols):
        yield from _wrapped("  also at      ", said)


def elsewhere(alike: Sequence[ReportedChain], symbols: Symbols) -> str:
    """The instructions at which the same happened; "" where there are none."""
    chains = [one.chain for one in alike]
    places = []
    for chain in chains[:SHOWN]:
        times = f" ({chain.times} times)" if chain.times > 1 else ""
        places.append(f"{place(chain.first, symbols)}, line {chain.first.line}{times}")
    rest = [f"and {len(chains) - SHOWN} more places"] if len(chains) > SHOWN else []
    return "; ".join(places + rest)


def _repeated(log: Log, symbols: Symbols) -> Iterator[str]:
    going = log.repeated
    assert going is not None
    yield from _wrapped(f"  {vectors.label(going.event.vector):<5} ", repeated(going, symbols))


def repeated(going: Repetition, symbols: Symbols) -> str:
    """How often the last event came, where, and why."""
    event, stride = going.event, going.stride
    deeper = f", RSP {abs(stride)} bytes {'lower' if stride < 0 else 'higher'} each time" if stride else ""
    return f"{going.times} times in a row to the end of the log, at {place(event, symbols)}{deeper}: " + (
        "the handler faults at its first instruction, or at its first use of the stack"
        if stride
        else "its handler returns without fixing the cause"
    )


def _counts(log: Log) -> Iterator[str]:
    if not log.counts:
        yield "no events in protected or 64-bit mode"
        return
    yield "  vector     kind           count   in ring 3  lines"
    for count in log.counts:
        lines = f"{count.first}" if count.first == count.last else f"{count.first}..{count.last}"
        yield f"  {vector(count):<10} {count.origin:<12} {count.total:>7}  {count.user:>10}  {lines}"


def vector(count: Count) -> str:
    """` 14 #PF`, `236 0xec`."""
    named = count.vector < 32 and count.origin != INTERRUPT
    return f"{count.vector:>3} {vectors.EXCEPTIONS[count.vector].mnemonic if named else hex(count.vector)}"


def titles() -> dict[str, str]:
    """The title of each rule."""
    return {rule.id: rule.title for rule in RULES}


def _wrapped(head: str, text: str) -> Iterator[str]:
    import textwrap

    indent = " " * max(8, len(head))
    yield from textwrap.wrap(text, 98, initial_indent=head.ljust(8), subsequent_indent=indent, break_on_hyphens=False)
