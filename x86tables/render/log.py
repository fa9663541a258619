"""The story of a QEMU log, in words and as plain values."""

from __future__ import annotations

from ..checks import RULES
from ..errors import NotThere
from ..qemulog.chains import CUT, DF, ENTERED, EXCEPTION, GUEST, INT, INTERRUPT, PF, SHUTDOWN
from ..qemulog.diagnosis import named_vector
from ..qemulog.replay import agrees, machine_at, replay
from ..tables import vectors
from ..tables.selector import PageFaultErrorCode, SelectorErrorCode
from . import describe as words
from .data import SCHEMA, hexadecimal
from .lines import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..delivery.events import Delivery
    from ..machine.image import Image
    from ..machine.symbols import Symbols
    from ..qemulog.chains import Account, Attempt, Chain, Count
    from ..qemulog.entries import Delivering

SHOWN = 8  # stories told in full, and places at which one happened too
HEADLINES = {
    "triple-fault": "Triple fault: the processor shut down",
    CUT: "The log ends where a delivery has failed: what became of it is not known",
    "loops": "It goes round: the same exception again and again",
    "survives": "A double fault, and its handler was entered: no triple fault",
    "irq-as-exception": "No fault: a hardware interrupt came on the vector of an exception",
    "reset": "No fault: the machine was reset on purpose, by a triple fault",
    "delivery-failed": "An event could not be delivered: the handler of another exception was entered in its place",
    GUEST: "A shutdown that is no triple fault of this machine: its own guest's",
    "nothing": "Nothing went wrong in delivery: no triple fault, no double fault",
}
HARDWARE = 8, 16  # the vectors on which a PIC's first half interrupts until it is remapped


class Teller:
    """Tells the story of one log with the names, and the memory, that there are."""

    def __init__(self, account: Account, symbols: Symbols, image: Image | None) -> None:
        self.account, self.symbols, self.image = account, symbols, image
        self._variant: dict[int, Delivery | None] = {}

    def replayed(self, chain: Chain) -> Delivery | None:
        """The replay of a chain with the image; None without an image, or where it goes another way than the log."""
        if self.image is None:
            return None
        if chain.end not in self._variant:
            told = replay(self.image, chain)
            self._variant[chain.end] = told if told is not None and agrees(chain, told) else None
        return self._variant[chain.end]

    def place(self, event: Delivering) -> str:
        """`0x8:0x100118 <overflow at kernel.asm:97>`."""
        return f"{event.cs:#x}:{event.rip:#x}{self.named(event.rip)}"

    def named(self, address: int) -> str:
        """` <name at file:line>`, or nothing."""
        name = self.symbols.place(address)
        return f" <{name}>" if name else ""

    def what(self, chain: Chain, number: int) -> str:
        """What an event of a chain was, in words."""
        attempt, before = chain.attempts[number], chain.attempts[number - 1] if number else None
        event = attempt.event
        if attempt.origin == INTERRUPT:
            return "a hardware interrupt"
        if attempt.origin == INT:
            return f"the instruction INT {event.vector:#x}"
        if attempt.origin != EXCEPTION:
            return "an NMI" if event.vector == 2 else "neither an interrupt controller's nor an exception"
        if event.vector == PF:
            text = words.page_fault_error(PageFaultErrorCode.from_int(event.error_code & 0xFFFFFFFF))
            return text + ("" if event.cr2 is None else f", at {event.cr2:#x}{self._against(event)}")
        if event.vector == DF and before is not None:
            return "one fault while another was delivered"
        if event.vector < 32 and vectors.EXCEPTIONS[event.vector].error_code and event.error_code:
            vector = None if before is None else named_vector(event.error_code, [before.event.vector])
            if vector is not None:
                named = SelectorErrorCode.from_int(event.error_code & 0xFFFF).index
                old = ", written as vector*16+2 by QEMU 7.2 and older" if named != vector else ""
                return f"error code {event.error_code:#x}: gate {vector}{old}"
            code = SelectorErrorCode.from_int(event.error_code & 0xFFFFFFFF)
            return f"error code {event.error_code:#x}: {words.selector_error(code)}"
        return vectors.EXCEPTIONS[event.vector].name if event.vector < 32 else "an exception"

    def _against(self, event: Delivering) -> str:
        """Where CR2 lies by RSP, when it is near; its name otherwise."""
        distance = event.rsp - (event.cr2 or 0)
        if 0 < distance <= 0x1000 and event.cpl == 0:
            return f", {distance} bytes below RSP {event.rsp:#x}"
        return self.named(event.cr2 or 0)

    def gate(self, chain: Chain, number: int) -> str | None:
        """The gate of an event, from the image: where it leads, by name."""
        event = chain.attempts[number].event
        machine = None if self.image is None else machine_at(self.image, event)
        if machine is None or not machine.wide:
            return None
        try:
            gate = machine.idt[event.vector]
        except NotThere as error:
            return None if self.image is not None and self.image.format == "elf" else f"gate {event.vector}: {error}"
        return f"gate {event.vector}: {words.gate(gate)}{self.named(gate.offset) if gate.p else ''}"

    def failed(self, chain: Chain, number: int) -> str | None:
        """Why the delivery of an event failed; None when it did not."""
        failure = chain.attempts[number].failure
        if failure is None:
            return None
        told = self.replayed(chain)
        if told is not None and told.attempts[number].fault is not None:
            step, stack = told.attempts[number].steps[-1], ""
            if step.step.startswith("push"):
                stack = " on the stack in use" if failed_on_current(told, number) else " on its own stack"
            where = "" if step.address is None else f" at {step.address:#x}{self.named(step.address)}"
            return f"{vectors.label(failure.fault)}: {step.step}{stack}{where}: {step.found}"
        return failure.why

    def cause(self, chain: Chain) -> str:
        """The first cause, in a sentence."""
        first, event = chain.attempts[0], chain.first
        label, place = vectors.label(event.vector), self.place(event)
        if first.stray:
            line = f"IRQ {event.vector - 8}" if 8 <= event.vector < 16 else "a hardware interrupt"
            timer = " (the timer)" if event.vector == 8 else ""
            return (
                f"{line}{timer} came on vector {event.vector}, which is that of {words.vector(event.vector)}: "
                "the PIC is not remapped. It is no exception: no check_exception line leads to it, and the CPU "
                "pushes no error code. Remap the PIC (to 32, say), or mask it, before STI"
            )
        if chain.deliberate:
            return (
                f"INT {event.vector} at {place} after an empty IDT was loaded: a reset on purpose, as firmware does it"
            )
        if chain.overflow:
            return f"the stack ran out in {place}: the page below RSP {event.rsp:#x} cannot be written"
        if first.failure is not None and first.failure.cause == "no-idt":
            return f"{label} at {place}, when no IDT was loaded"
        if first.origin == INT:
            return f"INT {event.vector:#x} at {place}, for which there is no gate that takes it"
        if first.origin == INTERRUPT:
            return f"a hardware interrupt on vector {event.vector:#x}, for which there is no gate that takes it"
        return f"{label} at {place}"

    def rule(self, chain: Chain) -> str | None:
        """The rule that fits; with an image the replay decides between a gate without IST and an IST stack."""
        told = self.replayed(chain)
        failures = [n for n, attempt in enumerate(chain.attempts) if attempt.failure is not None]
        if told is None or not failures or chain.attempts[failures[-1]].event.vector != DF:
            return chain.rule
        if not told.attempts[failures[-1]].steps[-1].step.startswith("push"):
            return chain.rule
        return "IDT004" if failed_on_current(told, failures[-1]) else "STK001"


def failed_on_current(told: Delivery, number: int) -> bool:
    """Whether an event's frame was pushed to the stack in use, not to one that the TSS names."""
    return any(step.step == "stack" for step in told.attempts[number].steps)


def text(path: str, teller: Teller) -> Iterator[str]:
    """The lines that `log` prints."""
    account = teller.account
    yield f"{path}: {account.lines} lines of QEMU's log"
    yield ""
    yield from wrap(f"{HEADLINES[account.outcome]}{_when(account)}.", "  ")
    chains = sorted(account.chains, key=lambda chain: (chain.outcome == ENTERED, chain.deliberate, chain.first.line))
    stories: dict[object, list[Chain]] = {}  # those that differ in their instruction alone are told once
    for chain in chains:
        stories.setdefault((chain.variant, teller.rule(chain)), []).append(chain)
    for alike in list(stories.values())[:SHOWN]:
        yield ""
        yield from _chain(alike[0], teller)
        yield from _elsewhere(alike[1:], teller)
    hidden = sum(len(alike) for alike in list(stories.values())[SHOWN:]) + account.others
    if hidden:
        yield ""
        yield f"{hidden} more stories like these (--format json has {len(chains)})"
    if account.round is not None:
        yield ""
        yield from _round(account, teller)
    yield ""
    yield from _counts(account)
    if account.last is not None and not account.chains:
        event = account.last.event
        yield ""
        yield from _wrapped(
            "the last exception  ",
            f"{vectors.label(event.vector)} in ring {event.cpl} at {teller.place(event)}, line {event.line}",
        )
    if account.resets:
        number = f"{account.resets} reset blocks" if account.resets > 1 else "1 reset block"
        yield f"{number}: power-on prints them too; only the line `Triple fault` tells of one"


def _when(account: Account) -> str:
    """The line that the headline is about."""
    chains = [chain for chain in account.chains if chain.verdict == account.outcome]
    if not chains:
        return ""
    times = sum(chain.times for chain in chains)
    more = f", and {times - 1} more time{'s' if times > 2 else ''}" if times > 1 else ""
    return f", line {min(chain.end for chain in chains)}{more}"


def _chain(chain: Chain, teller: Teller) -> Iterator[str]:
    for number, attempt in enumerate(chain.attempts):
        event = attempt.event
        label = f"irq {event.vector}" if attempt.origin == INTERRUPT else vectors.label(event.vector)
        head = f"  {label:<5} "
        ring = f"ring {event.cpl}, line {event.line}"
        if number and event.rip == chain.first.rip:
            yield from _wrapped(head, f"{teller.what(chain, number)}; line {event.line}")
        else:
            yield from _wrapped(head, f"at {teller.place(event)}, {ring}")
            yield from _wrapped("", teller.what(chain, number))
        gate = teller.gate(chain, number)
        if gate:
            yield from _wrapped("", gate)
        why = teller.failed(chain, number)
        yield from _wrapped("", f"not delivered: {why}" if why else "its handler was entered")
    if chain.outcome == SHUTDOWN:
        yield f"        => SHUTDOWN, line {chain.end}"
    elif chain.outcome == GUEST:
        yield f"        => a shutdown that is no triple fault of this machine: its own guest's, line {chain.end}"
    elif chain.outcome == CUT:
        yield f"        => the log ends here, line {chain.end}: what became of it is not known"
    if chain.times > 1:
        yield f"        {chain.times} times, the last one from line {chain.last}"
    yield ""
    yield from _wrapped("  first cause  ", teller.cause(chain))
    rule = teller.rule(chain)
    if rule is not None:
        yield from _wrapped("  rule         ", f"{rule}, {titles()[rule]}: x86tables explain {rule}")
        end = chain.attempts[-1].failure
        if teller.replayed(chain) is None and end is not None and end.cause == "page":
            yield "               as far as the log tells; --in IMAGE, a memory dump, makes it certain"


def _elsewhere(chains: list[Chain], teller: Teller) -> Iterator[str]:
    """Where else the same happened."""
    if not chains:
        return
    places = [
        f"{teller.place(chain.first)}, line {chain.first.line}" + (f" ({chain.times} times)" if chain.times > 1 else "")
        for chain in chains[:SHOWN]
    ]
    rest = [f"and {len(chains) - SHOWN} more places"] if len(chains) > SHOWN else []
    yield from _wrapped("  also at      ", "; ".join(places + rest))


def _round(account: Account, teller: Teller) -> Iterator[str]:
    going = account.round
    assert going is not None
    event, stride = going.event, going.stride
    deeper = f", RSP {abs(stride)} bytes {'lower' if stride < 0 else 'higher'} each time" if stride else ""
    yield from _wrapped(
        f"  {vectors.label(event.vector):<5} ",
        f"{going.times} times in a row to the end of the log, at {teller.place(event)}{deeper}: "
        + (
            "a handler that faults where it begins, or at its first use of the stack"
            if stride
            else "what its handler does cures nothing"
        ),
    )


def _counts(account: Account) -> Iterator[str]:
    if not account.counts:
        yield "no event of protected or 64-bit mode"
        return
    yield "  vector     kind           count   in ring 3  lines"
    for count in account.counts:
        lines = f"{count.first}" if count.first == count.last else f"{count.first}..{count.last}"
        yield f"  {_vector(count):<10} {count.origin:<12} {count.total:>7}  {count.user:>10}  {lines}"


def _vector(count: Count) -> str:
    named = count.vector < 32 and count.origin != INTERRUPT
    return f"{count.vector:>3} {vectors.EXCEPTIONS[count.vector].mnemonic if named else hex(count.vector)}"


def titles() -> dict[str, str]:
    """The title of each rule."""
    return {rule.id: rule.title for rule in RULES}


def _wrapped(head: str, text: str) -> Iterator[str]:
    import textwrap

    indent = " " * max(8, len(head))
    yield from textwrap.wrap(text, 98, initial_indent=head.ljust(8), subsequent_indent=indent, break_on_hyphens=False)


# JSON


def data(path: str, teller: Teller) -> dict[str, Any]:
    """What `log --format json` prints."""
    account = teller.account
    return {
        "schema": SCHEMA,
        "log": {"path": path, "lines": account.lines},
        "outcome": account.outcome,
        "stories": [_story(chain, teller) for chain in account.chains],
        "more_stories": account.others,
        "loop": _loop(account, teller),
        "counts": [count.asdict() for count in account.counts],
        "resets": account.resets,
    }


def _story(chain: Chain, teller: Teller) -> dict[str, Any]:
    return {
        "outcome": chain.outcome,
        "log_line": chain.first.line,
        "end_line": chain.end,
        "times": chain.times,
        "first_cause": teller.cause(chain),
        "rule": teller.rule(chain),
        "replayed": teller.replayed(chain) is not None,
        "events": [_event(attempt, chain, number, teller) for number, attempt in enumerate(chain.attempts)],
    }


def _event(attempt: Attempt, chain: Chain, number: int, teller: Teller) -> dict[str, Any]:
    failure = attempt.failure
    return place(attempt.event, teller) | {
        "origin": attempt.origin,
        "what": teller.what(chain, number),
        "gate": teller.gate(chain, number),
        "failure": None
        if failure is None
        else {
            "cause": failure.cause,
            "vector": failure.fault,
            "why": teller.failed(chain, number),
            "cr2": hexadecimal(failure.cr2),
        },
    }


def place(event: Delivering, teller: Teller) -> dict[str, Any]:
    """An event as the log has it, with the name and the source line of its instruction."""
    return {
        "vector": event.vector,
        "error_code": hexadecimal(event.error_code),
        "log_line": event.line,
        "cpl": event.cpl,
        "cs": event.cs,
        "rip": hexadecimal(event.rip),
        "name": teller.symbols.name(event.rip),
        "line": teller.symbols.line(event.rip),
        "ss": event.ss,
        "rsp": hexadecimal(event.rsp),
        "cr2": hexadecimal(event.cr2),
    }


def _loop(account: Account, teller: Teller) -> dict[str, Any] | None:
    going = account.round
    if going is None:
        return None
    return place(going.event, teller) | {"times": going.times, "stride": going.stride}
