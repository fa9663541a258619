"""A logged chain delivered again, with the memory of an image: it adds what the log leaves out."""

from __future__ import annotations

from ..delivery import deliver as delivery
from ..delivery import events
from ..machine.registers import Registers
from .chains import CUT, EXCEPTION, INT, INTERRUPT, SHUTDOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..delivery.events import Delivery
    from ..machine.image import Snapshot
    from ..machine.machine import Machine
    from .chains import Chain
    from .entries import Delivering


def machine_at(image: Snapshot, event: Delivering) -> Machine | None:
    """A CPU with the image's memory and the registers that the log has at an event; None when it has none there."""
    registers = event.registers
    if registers is None or not image.machines:
        return None
    if image.format == "elf":  # as linked: memory goes by linear addresses, and there are no page tables
        registers = Registers(gdtr=registers.gdtr, idtr=registers.idtr, tr=registers.tr)
    machine = image.machines[0].replace(registers)
    bases = machine.descriptor_bases()
    return machine.replace(registers.replace(**bases)) if bases else machine


def replay(image: Snapshot, chain: Chain) -> Delivery | None:
    """A chain's first event delivered with the image's memory; None when that cannot be done.

    It shows more than the log where it goes the same way: see `agrees`.
    """
    first, event = chain.attempts[0], chain.first
    machine = machine_at(image, event)
    kind = {INT: events.INT, INTERRUPT: events.INTERRUPT, EXCEPTION: events.EXCEPTION}.get(first.origin)
    if machine is None or kind is None or not machine.long_mode:
        return None
    code = event.error_code if first.origin == EXCEPTION else None
    return delivery.deliver(machine, events.Event(event.vector, kind, code, 0, event.cr2))


def agrees(chain: Chain, replayed: Delivery) -> bool:
    """Whether a replay goes through the same events as the log, to the same end."""
    same = [attempt.event.vector for attempt in chain.attempts] == [event.vector for event in replayed.events]
    return same and (replayed.outcome == events.SHUTDOWN) == (chain.outcome in (SHUTDOWN, CUT))
