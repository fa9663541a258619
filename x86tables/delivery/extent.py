"""How deep a stack can be pushed, and what ends it: the only walk down a stack."""

from __future__ import annotations

from .. import budgets
from ..machine.memory import PAGE
from ..machine.paging import PUSH
from ..machine.probe import Fault, Ok, Unknown
from ..records import Record
from .occupants import STACK, TOP, Occupant, Occupants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.machine import Machine
    from ..machine.paging import Access
    from ..machine.probe import Probe
    from .state import StepBudget

NEAR = 1 << 20  # a guard page is looked for so far below a stack pointer


def pages_below(
    machine: Machine, top: int, access: Access = PUSH, budget: StepBudget | None = None
) -> Iterator[tuple[int, Probe]]:
    """The pages from the one with the byte below `top` downwards, without end: (its lowest address, the answer).

    A large page that can be pushed to is one step. Addresses are not wrapped: below 0 they are negative. NoEnd when no
    steps are left of `budget`.
    """
    page = top - 1 & -PAGE
    while True:
        if budget is not None:
            budget.take()
        answer = machine.probe(page % TOP, access)
        lowest = page
        if isinstance(answer, Ok) and page >= 0:
            lowest = machine.space.start_of(page)
        yield lowest, answer
        page = lowest - PAGE


class Extent(Record):
    """How deep a stack can be pushed: from its end `top` down to `bottom`, the lowest byte that is its own.

    `below` is what ends it: the answer of the page under it, or what else lies there; None when the search ended
    before. `above` is the answer of the page that begins at `top`, None when it can be pushed to or `top` lies inside a
    page.
    """

    top: int
    bottom: int
    below: Fault | Unknown | Occupant | None = None
    above: Fault | Unknown | None = None

    @property
    def size(self) -> int:
        """How many bytes can be pushed; 0 when the first push faults already."""
        return int(self.top - self.bottom)

    @property
    def known(self) -> bool:
        """Whether it is known what ends the stack, or that nothing does."""
        return not isinstance(self.below, Unknown)


def extent(machine: Machine, top: int, most: int = NEAR, occupants: Occupants | None = None) -> Extent:
    """The stack whose end is `top`, followed downwards to the first page that a supervisor's push cannot enter, or to
    the nearest of the `occupants`.

    The byte at `top` itself is not part of it. The search ends after `most` bytes.
    """
    above = refusal(machine.probe(top % TOP, PUSH)) if top % PAGE == 0 else None
    bottom = top
    below: Fault | Unknown | Occupant | None = None
    floor = top - most + PAGE - 1 & -PAGE
    for lowest, answer in pages_below(machine, top):
        below = refusal(answer)
        if below is not None:
            break
        bottom = max(lowest, floor)
        if bottom == floor:
            break
    # a stack in use elsewhere may be RSP0's, which belongs to whichever task runs
    inside = occupants.between(machine, bottom, top & ~15, lasting=True) if occupants is not None else []
    if inside:
        bottom, below = min(inside[0].end, top), inside[0]
    own = machine.known_stack(top - 1)
    if own is not None and own.start > bottom:
        bottom = own.start
        below = Occupant(bottom - 1, bottom, "memory that is not this stack's", STACK, machine.cpu)
    return Extent(top, bottom, below, above)


def descent(machine: Machine, rsp: int, access: Access, budget: StepBudget) -> range | None:
    """The memory from the page of `rsp` downwards in which a stack can be consumed: a push enters it, and no part of a
    table lies in it. None where it has no end within FARTHEST bytes.

    Address 0 ends it: below is the top of the address space.
    """
    top = bottom = (rsp & -PAGE) + PAGE
    for lowest, answer in pages_below(machine, top, access, budget):
        if not isinstance(answer, Ok):
            break
        page = machine.space.page(lowest % TOP)
        frames = range(page.physical >> 12, (page.physical + page.size) >> 12)
        tables = (lowest + number * PAGE - page.physical for number in machine.table_pages.intersection(frames))
        held = [at for at in tables if at < bottom]
        bottom = max(held) + PAGE if held else lowest
        if held or lowest <= 0:
            break
        if rsp - lowest >= budgets.FARTHEST:
            return None
    return range(bottom, top)


def refusal(answer: Probe) -> Fault | Unknown | None:
    """The answer where it is not Ok."""
    return None if isinstance(answer, Ok) else answer
