"""What `check` prints: verdicts, traces, and what the rules find."""

from __future__ import annotations

import json

from ...delivery.scenarios import NOT_APPLICABLE
from ...delivery.simulate import LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN
from ...documents import LEFT_OUT, Answer, Document, one_of
from ...tables.tss import STACKS
from . import ImageJson, stream
from .trace import LoopJson, StepJson, loop, steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...assessment import Assessment, Outcome
    from ...delivery.scenarios import Scenario
    from ...delivery.stacks import InterruptStack, StackInUse
    from ...documents import U8, Hex, Natural
    from ...machine.image import Snapshot
    from ...machine.symbols import Symbols

VERDICTS = (SURVIVES, TRIPLE_FAULT, LOOPS, UNKNOWN, NOT_APPLICABLE)
OF_STACKS = ("guarded", "silent-corruption", "unknown", "not-judged")


class HandledByJson(Document, stack=one_of("current", *map(str.upper, STACKS))):
    """The handler that was entered.

    line: file:line, when the symbols come from an ELF file
    """

    vector: U8
    stack: str
    handler: Hex | None
    name: str | None
    line: str | None = LEFT_OUT


class StackInUseJson(
    Document,
    verdict=one_of(*OF_STACKS),
    kind=one_of("unmapped", "read-only", "user page", "reserved bits", "not canonical", None),
):
    """The answer about the stack in use.

    guard: address of the guard page
    distance: bytes from RSP down to the guard
    """

    verdict: str
    reason: str
    rsp: Hex | None
    guard: Hex | None
    kind: str | None
    distance: Natural | None
    beyond: str | None


class RoomJson(Document):
    """How much can be pushed to an interrupt stack.

    below: what ends it
    vectors: of the gates that use it
    """

    stack: str
    top: Hex
    size: Natural
    below: str | None
    vectors: list[U8]


class VariantJson(Document, verdict=one_of(*VERDICTS)):
    """One variant of a scenario."""

    name: str
    verdict: str
    reason: str


class ScenarioJson(Document, verdict=one_of(*dict.fromkeys(VERDICTS + OF_STACKS))):
    """One scenario.

    verdict: that of a CPU, or for current-stack that of a stack
    loop: of the worst variant
    trace: of the worst variant
    """

    name: str
    verdict: str
    reason: str
    needs: str | None
    handled_by: HandledByJson | None
    ways: list[VariantJson]
    loop: LoopJson | None
    trace: list[StepJson]


class FindingJson(Document, severity=one_of("error", "warning", "note")):
    """What a rule found."""

    rule: str
    severity: str
    where: str
    message: str


class NotCheckedJson(Document):
    """A rule that lacks an input."""

    rule: str
    needs: str


class CheckedJson(Document, verdict=one_of(*VERDICTS)):
    """One CPU.

    verdict: that of the scenario stack-overflow
    """

    cpu: Natural
    verdict: str
    reason: str
    handled_by: HandledByJson | None
    assumed: list[str]
    remarks: list[str]
    stack: StackInUseJson
    rooms: list[RoomJson]
    scenarios: list[ScenarioJson]
    findings: list[FindingJson]
    not_checked: list[NotCheckedJson]


class CheckJson(Answer, verdict=one_of(*VERDICTS)):
    """The verdict on every CPU.

    verdict: the worst; not-applicable only when all are so
    problems: errors of a configuration that are in no CPU's tables: a stack without a guard and its neighbour
    """

    image: ImageJson
    cpus: list[CheckedJson]
    verdict: str
    problems: list[str]


def check(image: Snapshot, assessments: Iterable[Assessment], outcome: Outcome) -> Iterator[str]:
    """What `check --format json` prints, CPU by CPU; the outcome notes the assessments as they pass."""
    head = CheckJson(image=ImageJson.of(image), cpus=[], verdict="", problems=[])
    cpus = (_cpu(each, image.symbols) for each in assessments)
    return stream(head, "cpus", cpus, lambda: {"verdict": outcome.verdict, "problems": list(outcome.problems)})


def line(image: Snapshot, assessments: Iterable[Assessment], outcome: Outcome) -> str:
    """The same in one line, as `--format jsonl` has it."""
    return json.dumps(json.loads("".join(check(image, assessments, outcome))))


def _cpu(assessment: Assessment, symbols: Symbols) -> CheckedJson:
    overflow = assessment.overflow
    return CheckedJson.of(
        assessment,
        handled_by=_handled_by(overflow, symbols),
        assumed=list(assessment.assumed),
        remarks=list(overflow.remarks),
        stack=_stack(assessment.stack),
        rooms=list(map(_room, assessment.interrupt_stacks)),
        scenarios=[_scenario(scenario, symbols) for scenario in assessment.scenarios],
    )


def _room(stack: InterruptStack) -> RoomJson:
    below = stack.extent.below
    return RoomJson(
        stack=stack.pointer.name,
        top=stack.pointer.top,
        size=stack.extent.size,
        below=None if below is None else below.why,
        vectors=list(stack.pointer.vectors),
    )


def _handled_by(scenario: Scenario, symbols: Symbols) -> HandledByJson | None:
    if scenario.handled_by is None or scenario.worst is None or scenario.worst.simulation is None:
        return None
    vector, stack = scenario.handled_by
    rip = scenario.worst.simulation.registers.rip
    return HandledByJson(
        vector=vector,
        stack=stack,
        handler=rip,
        name=None if rip is None else symbols.name(rip),
        line=symbols.line(rip) if symbols.lined and rip is not None else LEFT_OUT,
    )


def _stack(stack: StackInUse) -> StackInUseJson:
    guard = stack.guard
    return StackInUseJson.of(
        stack,
        guard=None if guard is None else (guard.top - 1) % (1 << 64) & ~0xFFF,
        kind=None if guard is None else guard.kind.value,
    )


def _scenario(scenario: Scenario, symbols: Symbols) -> ScenarioJson:
    """A scenario with the trace of its worst variant."""
    simulation = scenario.worst.simulation if scenario.worst is not None else None
    return ScenarioJson.of(
        scenario,
        handled_by=_handled_by(scenario, symbols),
        ways=scenario.variants,
        loop=None if simulation is None else loop(simulation),
        trace=[] if simulation is None else steps(simulation),
    )
