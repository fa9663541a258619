"""What a log shows, and what the memory of an image adds: for each chain the first cause, the replay, the rule."""

from __future__ import annotations

from ..errors import NotThere
from ..records import Record
from ..tables import vectors
from .chains import DF, ENTERED, EXCEPTION, INT, INTERRUPT, PF
from .diagnosis import named_vector
from .replay import agrees, machine_at, replay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..delivery.events import Delivery, Step
    from ..machine.image import Snapshot
    from ..tables.idt import Gate
    from .chains import Chain, Log, LoggedAttempt

STRAY, RESET, OVERFLOW, NO_IDT, UNTAKEN, FAULT = "stray-irq", "reset", "overflow", "no-idt", "untaken", "fault"
NEAR = 0x1000  # a page fault so close below RSP is named by its distance


class ReportedEvent(Record):
    """One event of a chain.

    `gate` is its gate in the image, `gate_error` why that cannot be read. `step` is the check at which the replay
    failed; where that is the push of a frame, `own_stack` says whether it goes to a stack that the TSS names.
    `named` is the vector of the gate that its error code names, `below_rsp` how far below RSP a page fault is.
    """

    attempt: LoggedAttempt
    gate: Gate | None = None
    gate_error: str | None = None
    step: Step | None = None
    own_stack: bool | None = None
    named: int | None = None
    below_rsp: int | None = None


class ReportedChain(Record):
    """A chain of the log with its first cause, and the rule that finds it in an image.

    `replayed`: whether the image's memory leads through the same events to the same end.
    """

    chain: Chain
    cause: str
    rule: str | None
    replayed: bool
    events: tuple[ReportedEvent, ...]

    @property
    def certain(self) -> bool:
        """Whether a memory dump would not change what the rule is."""
        end = self.chain.attempts[-1].failure
        return self.replayed or end is None or end.cause != "page"


class LogReport(Record):
    """All of a log; chains in the order of their lines."""

    log: Log
    chains: tuple[ReportedChain, ...]

    @property
    def alike(self) -> list[list[ReportedChain]]:
        """The chains, the worst first; those that differ in their instruction alone together."""
        groups: dict[object, list[ReportedChain]] = {}
        for one in sorted(self.chains, key=_weight):
            groups.setdefault((one.chain.variant, one.rule), []).append(one)
        return list(groups.values())

    @property
    def deciding(self) -> list[Chain]:
        """The chains that the outcome of the log comes from."""
        return [one.chain for one in self.chains if one.chain.verdict == self.log.outcome]


def _weight(one: ReportedChain) -> tuple[bool, bool, int]:
    return one.chain.outcome == ENTERED, one.chain.deliberate, one.chain.first.line


def report(log: Log, image: Snapshot | None = None) -> LogReport:
    """What a log shows; with an image its chains are delivered again, and gates are read."""
    return LogReport(log, tuple(_chain(chain, image) for chain in log.chains))


def _chain(chain: Chain, image: Snapshot | None) -> ReportedChain:
    found = None if image is None else replay(image, chain)
    if found is not None and not agrees(chain, found):
        found = None
    events = tuple(_event(chain, number, image, found) for number in range(len(chain.attempts)))
    return ReportedChain(chain, _cause(chain), _rule(chain, events), found is not None, events)


def _event(chain: Chain, number: int, image: Snapshot | None, found: Delivery | None) -> ReportedEvent:
    attempt = chain.attempts[number]
    event = attempt.event
    gate, error = _gate(attempt, image)
    step, own_stack, named, below = None, None, None, None
    if found is not None and attempt.failure is not None and found.attempts[number].fault is not None:
        steps = found.attempts[number].steps
        step = steps[-1]
        if step.step.startswith("push"):
            own_stack = all(step.step != "stack" for step in steps)
    if number and attempt.origin == EXCEPTION and event.vector < 32 and vectors.EXCEPTIONS[event.vector].error_code:
        named = named_vector(event.error_code, [chain.attempts[number - 1].event.vector])
    if event.vector == PF and event.cpl == 0 and 0 < (distance := event.rsp - (event.cr2 or 0)) <= NEAR:
        below = distance
    return ReportedEvent(attempt, gate, error, step, own_stack, named, below)


def _gate(attempt: LoggedAttempt, image: Snapshot | None) -> tuple[Gate | None, str | None]:
    """The gate of an event in the image; else why it cannot be read, which a linked kernel without it need not say."""
    machine = None if image is None else machine_at(image, attempt.event)
    if image is None or machine is None or not machine.wide:
        return None, None
    try:
        return machine.idt[attempt.event.vector], None
    except NotThere as error:
        return None, None if image.format == "elf" else str(error)


def _cause(chain: Chain) -> str:
    """What came first."""
    first = chain.attempts[0]
    if first.stray:
        return STRAY
    if chain.deliberate:
        return RESET
    if chain.overflow:
        return OVERFLOW
    if first.failure is not None and first.failure.cause == "no-idt":
        return NO_IDT
    return UNTAKEN if first.origin in (INT, INTERRUPT) else FAULT


def _rule(chain: Chain, events: tuple[ReportedEvent, ...]) -> str | None:
    """The rule that fits; where the replay shows it, it decides between a gate without IST and an IST stack."""
    failed = [event for event in events if event.attempt.failure is not None]
    if not failed or failed[-1].attempt.event.vector != DF or failed[-1].own_stack is None:
        return chain.rule
    return "STK001" if failed[-1].own_stack else "IDT004"
