"""A boot image that runs off the end of its stack on a machine's tables, by real recursion, in QEMU.

The image enters 64-bit mode, changes to page tables built from the machine's mappings, loads GDT, CS by a far return,
SS, TR and IDT, and calls itself without end. In the place of each handler stands a call of code that reports what it
finds on the debug console and ends QEMU through isa-debug-exit. Nothing else of the machine is changed.
"""

from __future__ import annotations

import os
import struct
import tempfile

from ..delivery.rings import in_ring0
from ..delivery.scenarios import ScenarioOptions, run_scenario
from ..delivery.simulate import SURVIVES, UNKNOWN
from ..delivery.stacks import guard_below
from ..errors import NotThere
from ..machine.machine import Machine
from ..machine.memory import PAGE
from ..records import Record
from ..tables.vectors import EXCEPTIONS, label
from . import qemu as guest
from .boot_image import CALL, boot_image
from .overflow_code import ENTERED
from .processes import exceptions_from_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..delivery.scenarios import Variant
    from .boot_image import BootImage

VARIANT = "call at the guard's edge"  # the variant of the scenario that recursion is
REPORT = struct.Struct("<B8Q")  # loaded; then of a handler: RSP, CR2, the return address of its call, and its frame
SECONDS = 20.0


class Overflow(Record):
    """One CPU's stack overflow in QEMU: the verdict there, and the one that was predicted.

    `guard` is the page that the recursion runs into: its first byte and the one behind it. `vector`, `error_code` (None
    where there is none), `rsp` at the handler's first instruction and the stack it is on are None without a handler.
    `differs` says what is not as predicted, "" when all is; a verdict whose overflow never happened is `unknown`.
    """

    machine: Machine
    predicted: str
    verdict: str
    reason: str
    initial_rsp: int | None = None
    guard: tuple[int, int] | None = None
    vector: int | None = None
    error_code: int | None = None
    cr2: int | None = None
    rsp: int | None = None
    rip: int | None = None
    stack: str | None = None
    differs: str = ""


def overflow(machine: Machine, options: ScenarioOptions = ScenarioOptions(), seconds: float = SECONDS) -> Overflow:  # noqa: B008
    """Run a machine's stack overflow in QEMU. NotThere when QEMU is not installed."""
    guest.program()
    scenario = run_scenario("stack-overflow", machine, options)
    variant = next((variant for variant in scenario.variants if variant.name == VARIANT), scenario.worst)
    nothing = Overflow(machine, scenario.verdict, UNKNOWN, scenario.reason)
    if variant is None or variant.simulation is None or variant.verdict == UNKNOWN:
        return nothing.replace(reason=(variant.needs if variant else None) or scenario.reason)
    try:
        registers, _ = in_ring0(machine, options.stack)
        guard = guard_below(machine, registers)
        if guard is None:
            raise NotThere("a page below the stack that cannot be pushed to: none is near")
        image = boot_image(machine, registers, options.handler_stack)
    except NotThere as error:
        return nothing.replace(reason=str(error))
    with exceptions_from_signals(), tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "overflow.elf")
        with open(path, "wb") as file:
            file.write(image.elf)
        # nothing that writes to standard output but the debug console
        arguments = ["-M", "pc", "-cpu", "max", "-m", f"{image.mebibytes}M", "-nodefaults", "-display", "none"]
        arguments += ["-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4", "-kernel", path]
        ending = guest.watch(arguments, seconds)
    found = nothing.replace(
        predicted=variant.verdict,
        initial_rsp=registers.rsp,
        guard=(guard.top - PAGE, guard.top),
        verdict=ending.verdict,
    )
    return judged(_observed(found, ending, image), variant, image.loop)


def _observed(found: Overflow, ending: guest.Ending, image: BootImage) -> Overflow:
    """The outcome, from the report on the debug console or, without one, from the log."""
    console, chains = ending.output, ending.log.chains
    first = chains[0].first if chains else None
    if not console:
        why = f"{label(first.vector)}({first.error_code:#x}) at {first.rip:#x}" if first else ending.reason
        return found.replace(verdict=UNKNOWN, reason=f"the tables cannot be loaded: {why}")
    if ending.status != 2 * ENTERED + 1 or len(console) != REPORT.size:  # no handler has reported anything
        verdict = UNKNOWN if ending.verdict == SURVIVES else ending.verdict
        place = (first.cr2, first.rip) if first else (None, None)
        return found.replace(verdict=verdict, reason=ending.reason, cr2=place[0], rip=place[1])
    _, rsp, cr2, called, *frame = REPORT.unpack(console)
    vectors = image.handlers[called - CALL.size]
    entered = ending.entered.event.vector if ending.entered is not None else vectors[0]
    vector = entered if entered in vectors else vectors[0]
    code = frame.pop(0) if vector < len(EXCEPTIONS) and EXCEPTIONS[vector].error_code else None
    return found.replace(
        verdict=SURVIVES, reason=f"the {label(vector)} handler runs", vector=vector, error_code=code, cr2=cr2,
        rsp=rsp + 8, rip=frame[0], stack=_stack(found.machine, vector),
    )  # fmt: skip


def _stack(machine: Machine, vector: int) -> str:
    ist = machine.idt[vector].ist
    return f"IST{ist}" if ist else "current"


def judged(found: Overflow, variant: Variant, loop: int) -> Overflow:
    """With what is not as it should be: no overflow at all, or another one than predicted."""
    if found.verdict == UNKNOWN or found.guard is None:
        return found
    inside = found.cr2 is not None and found.guard[0] <= found.cr2 < found.guard[1]
    if not inside or found.rip != loop:
        place = f"CR2 is {_hex(found.cr2)}, the guard page [{found.guard[0]:#x}, {found.guard[1]:#x})"
        reason = (
            f"no stack overflow was seen: {place}, RIP {_hex(found.rip)}, the recursion at {loop:#x}; {found.reason}"
        )
        return found.replace(verdict=UNKNOWN, reason=reason)
    if found.verdict != variant.verdict:
        return found.replace(differs=f"{variant.verdict} predicted: {variant.reason}")
    if found.verdict != SURVIVES or variant.simulation is None:
        return found
    last = variant.simulation.deliveries[-1]
    expected = {"vector": last.vector, "stack": last.stack, "rsp": last.registers.rsp, "cr2": last.cr2}
    wrong = [f"{name} {ours} predicted, {found[name]} seen" for name, ours in expected.items() if ours != found[name]]
    return found.replace(differs="; ".join(wrong))


def _hex(value: int | None) -> str:
    return "not known" if value is None else f"{value:#x}"
