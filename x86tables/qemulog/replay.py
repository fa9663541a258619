"""The story of a log delivered again, with the memory of an image: it tells what the log leaves out."""

from __future__ import annotations

from .. import delivery
from ..errors import UsageError
from ..machine import Registers
from .chains import EXCEPTION, INT, INTERRUPT, SHUTDOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..delivery import Delivery
    from ..image import Image
    from .chains import Chain


def replay(image: Image, chain: Chain) -> Delivery | None:
    """The same event delivered with the image's memory and the log's registers; None when the log has none.

    It tells more than the log where it takes the same way: see `agrees`.
    """
    first, registers = chain.attempts[0], chain.first.registers
    if registers is None or not image.machines:
        return None
    if image.format == "elf":  # as linked: memory goes by linear addresses, and there are no page tables
        registers = Registers(gdtr=registers.gdtr, idtr=registers.idtr, tr=registers.tr)
    machine = image.machines[0].variant(registers)
    event = chain.first
    kind = {INT: delivery.INT, INTERRUPT: delivery.INTERRUPT, EXCEPTION: delivery.EXCEPTION}
    code = event.error_code if first.origin == EXCEPTION else None
    sent = delivery.Event(event.vector, kind.get(first.origin, delivery.INTERRUPT), code, 0, event.cr2)
    try:
        return delivery.deliver(machine, sent)
    except UsageError:  # not in long mode
        return None


def agrees(chain: Chain, told: Delivery) -> bool:
    """Whether a replay goes through the same events as the log, to the same end."""
    same = [attempt.event.vector for attempt in chain.attempts] == [event.vector for event in told.events]
    return same and (told.outcome == delivery.SHUTDOWN) == (chain.outcome == SHUTDOWN)
