"""A simulation as text: each event, what the CPU read, what it found, and what that led to."""

from __future__ import annotations

import re

from ..delivery.events import DELIVERED
from ..delivery.simulate import stack_name
from ..tables.selector import PageFaultErrorCode
from ..tables.vectors import label
from .lines import COLOURS, RED, coloured, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..delivery.events import Attempt, Delivery, Event, Step
    from ..delivery.simulate import Loop, Simulation
    from ..machine.image import Snapshot
    from ..machine.machine import Machine
    from ..machine.registers import Registers
    from ..machine.symbols import Symbols

QUIET = ("read", "written", "can be pushed to", "delivered", "the first instruction")  # rules that need no words
ENDINGS = {"survives": "runs", "triple-fault": "SHUTDOWN", "loops": "loops", "unknown": "not known"}
_FAR = r"(0x[0-9a-f]+):(0x[0-9a-f]+)"  # compiled when it is used


def simulation(one: Simulation, symbols: Symbols, all_steps: bool = False) -> Iterator[str]:
    """The lines of a trace: each event, what the CPU read, what it found, what that led to."""
    for number, delivery in enumerate(one.deliveries):
        if one.loop is not None and number == one.loop.at:
            yield f"    ... {loop(one.loop)}"
        handler = one.handlers[number] if number < len(one.handlers) else None
        yield from _delivery(delivery, symbols, all_steps)
        if handler is not None:
            yield f"    {label(handler.vector)} handler on {stack_name(one.deliveries[: number + 1])}"
            for step in handler.steps:
                yield from _step(step, symbols)
    if one.loop is not None and one.loop.at >= len(one.deliveries):
        yield f"    ... {loop(one.loop)}"
    yield from wrap(f"    => {coloured(ENDINGS[one.outcome], COLOURS[one.outcome])}: {one.reason}", "       ")


def trace(
    image: Snapshot, event: Event, traced: Sequence[tuple[Machine, Registers, Simulation]], all_steps: bool
) -> Iterator[str]:
    """The lines that `trace` prints: for each CPU where it happened, the steps, and the frame of the last delivery."""
    for number, (machine, before, one) in enumerate(traced):
        if number:
            yield ""
        rip, rsp = _hexadecimal(before.rip), _hexadecimal(before.rsp)
        yield f"CPU {machine.cpu}  {event.label} in ring {before.cpl}, RIP {rip}, RSP {rsp}"
        yield from simulation(one, image.symbols, all_steps)
        last = one.deliveries[-1]
        if last.pushed is not None:
            values = {name: value for name, value in last.pushed.asdict().items() if not name.startswith("reserved")}
            shown = ", ".join(f"{name.replace('_', ' ')} {value:#x}" for name, value in reversed(values.items()))
            yield from wrap(f"    frame at {_hexadecimal(last.registers.rsp)}: {shown}", "      ")
        if last.outcome == DELIVERED:
            r = last.registers
            selectors = [f"{name} {s.selector:#x}" for name, s in (("cs", r.cs), ("ss", r.ss)) if s is not None]
            rest = [f"{name} {r[name]:#x}" for name in ("rip", "rsp", "rflags", "cr2") if r[name] is not None]
            yield from wrap(f"    then {', '.join(selectors + rest)}", "      ")


def _hexadecimal(value: int | None) -> str:
    return "not known" if value is None else f"{value:#x}"


def _delivery(delivery: Delivery, symbols: Symbols, all_steps: bool) -> Iterator[str]:
    before: Attempt | None = None
    for attempt in delivery.attempts:
        cause = ""
        if before is not None and before.fault is not None:
            cause = f"   {before.fault.label} while delivering {before.event.label}"
        yield f"    {event_line(attempt.event)}{cause}"
        for step in attempt.steps:
            if all_steps or telling(step, attempt):
                failed = attempt.fault is not None and step is attempt.steps[-1]
                yield from (coloured(line, RED) if failed else line for line in _step(step, symbols))
        before = attempt


def telling(step: Step, attempt: Attempt) -> bool:
    """Whether a person needs the step: it read or wrote something, chose the stack, or failed."""
    return step.address is not None or step.step == "stack" or (bool(attempt.fault) and step is attempt.steps[-1])


def _step(step: Step, symbols: Symbols) -> Iterator[str]:
    address = "" if step.address is None else f"{step.address:#x}"
    yield from wrap(f"      {step.step:<16}{address:<19} {found(step, symbols)}", " " * 44)


def found(step: Step, symbols: Symbols) -> str:
    """What a step found, and the rule that decided where that is not plain; addresses of code by name."""
    said = step.found if step.rule in QUIET else f"{step.found}: {step.rule}"
    if step.step.startswith("IDT entry"):
        return re.sub(_FAR, lambda far: f"{far[1]}:{symbols.place(int(far[2], 16)) or far[2]}", said)
    elif step.step in ("handler", "fetch") and step.address is not None and (name := symbols.place(step.address)):
        return f"{name}: {said}"
    return said


def event_line(event: Event) -> str:
    """`#PF(0x2) supervisor write, not present, CR2 0xffffffff909ffff8`."""
    code = "" if event.error_code is None else f"({event.error_code:#x})"
    if event.error_code and event.assumed:
        code = f"({event.error_code & ~event.assumed:#x} or {event.error_code:#x})"
    where = "" if event.cr2 is None else f", CR2 {event.cr2:#x}"
    kind = ""
    if event.vector == 14 and event.error_code is not None and event.kind == "exception":
        code_bits = PageFaultErrorCode.from_int(event.error_code & 0xFFFF_FFFF)
        doing = "fetch" if code_bits.id else "write" if code_bits.wr else "read"
        kind = f" {'user' if code_bits.us else 'supervisor'} {doing}, {'refused' if code_bits.p else 'not present'}"
    return f"{event.label}{code}{kind}{where}"


def loop(loop: Loop) -> str:
    events = ", ".join(label(vector) for vector in loop.vectors)
    if loop.rounds is None:
        return f"{events}: repeats indefinitely" + (f", {loop.stride} bytes deeper each time" if loop.stride else "")
    consumed = f"{loop.stride} bytes deeper each time, {loop.stack_consumed:,} bytes of stack"
    return f"{events}: {loop.rounds:,} times in all, {consumed}"
