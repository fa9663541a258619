"""What `trace` prints: one event on each CPU, step by step."""

from __future__ import annotations

from ...delivery.events import DELIVERED
from ...documents import LEFT_OUT, Answer, Document, one_of
from ...tables.vectors import label
from . import ImageJson
from .registers import RegistersJson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...delivery.events import Delivery, Event, Step
    from ...delivery.simulate import Simulation
    from ...documents import U8, Hex, Natural, Raw
    from ...machine.image import Snapshot
    from ...machine.machine import Machine
    from ...machine.registers import Registers
    from ...machine.symbols import Symbols


class StepJson(Document):
    """One check that the CPU makes, in the order of the manual."""

    event: str
    error_code: Hex | None
    step: str
    address: Hex | None
    found: str
    rule: str


class LoopJson(Document):
    """Events that repeat.

    rounds: repetitions; null: nothing ends it
    stride: bytes of stack that each repetition takes
    """

    vectors: list[U8]
    rounds: Natural | None
    stride: Natural
    eaten: Natural


class EventJson(Document, kind=one_of("exception", "trap", "interrupt", "nmi", "int", "int1")):
    """The event that is delivered."""

    vector: U8
    kind: str
    error_code: Hex | None


class FrameJson(Document):
    """What was pushed, the highest address first."""

    ss: Natural
    rsp: Hex
    rflags: Hex
    cs: Natural
    rip: Hex
    error_code: Hex = LEFT_OUT
    raw: Raw


class DeliveryJson(Document, outcome=one_of("delivered", "shutdown", "unknown")):
    """One delivery: where it ended.

    name: the handler, when symbols are given
    line: its file:line, when the symbols come from an ELF file
    """

    outcome: str
    vector: U8 | None
    name: str | None
    line: str | None = LEFT_OUT
    stack: str | None
    cr2: Hex | None
    frame: FrameJson | None
    registers: RegistersJson


class TracedJson(Document, outcome=one_of("survives", "triple-fault", "loops", "unknown"), deliveries={"minItems": 1}):
    """What happens on one CPU.

    registers: at the event
    """

    cpu: Natural
    assumed: list[str]
    registers: RegistersJson
    outcome: str
    reason: str
    needs: str | None
    loop: LoopJson | None
    trace: list[StepJson]
    deliveries: list[DeliveryJson]


class TraceJson(Answer, cpus={"minItems": 1}):
    """One event on each CPU."""

    image: ImageJson
    event: EventJson
    cpus: list[TracedJson]


def trace(image: Snapshot, event: Event, traced: Iterable[tuple[Machine, Registers, Simulation]]) -> TraceJson:
    """What `trace --format json` prints."""
    return TraceJson(
        image=ImageJson.of(image),
        event=EventJson.of(event),
        cpus=[
            TracedJson.of(
                simulation,
                cpu=machine.cpu,
                assumed=list(machine.assumed),
                registers=before,
                loop=loop(simulation),
                trace=steps(simulation),
                deliveries=[_delivery(delivery, image.symbols) for delivery in simulation.deliveries],
            )
            for machine, before, simulation in traced
        ],
    )


def loop(simulation: Simulation) -> LoopJson | None:
    """The events of a simulation that repeat."""
    found = simulation.loop
    return None if found is None else LoopJson.of(found, eaten=found.stack_consumed)


def steps(simulation: Simulation) -> list[StepJson]:
    """Every step of a simulation in order."""
    rows = []
    for number, delivery in enumerate(simulation.deliveries):
        for attempt in delivery.attempts:
            rows += [_step(attempt.event.label, attempt.event.error_code, step) for step in attempt.steps]
        if delivery.outcome == DELIVERED and number < len(simulation.handlers):
            handler = simulation.handlers[number]
            rows += [_step(f"{label(handler.vector)} handler", None, step) for step in handler.steps]
    return rows


def _step(event: str, code: int | None, step: Step) -> StepJson:
    return StepJson.of(step, event=event, error_code=code)


def _delivery(delivery: Delivery, symbols: Symbols) -> DeliveryJson:
    rip = delivery.registers.rip if delivery.outcome == DELIVERED else None
    pushed, frame = delivery.pushed, None
    if pushed is not None and delivery.frame is not None:
        fields = {name: value for name, value in pushed.asdict().items() if not name.startswith("reserved")}
        frame = FrameJson(raw=delivery.frame, **fields)
    return DeliveryJson.of(
        delivery,
        name=None if rip is None else symbols.name(rip),
        line=symbols.line(rip) if symbols.lined and rip is not None else LEFT_OUT,
        frame=frame,
    )
