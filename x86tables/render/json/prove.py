"""What `prove` prints: what Bochs did with an image's CPUs, what QEMU did with a configuration's or with a guest."""

from __future__ import annotations

from ...delivery.scenarios import NOT_APPLICABLE
from ...delivery.simulate import LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN
from ...documents import LEFT_OUT, Answer, Document, one_of
from ...qemulog.report import report
from . import ImageJson
from .log import LogJson, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...documents import U8, U16, Hex, Natural, Raw
    from ...machine.image import Snapshot
    from ...machine.symbols import Symbols
    from ...prove.event_log import Observation
    from ...prove.overflow import Overflow
    from ...prove.qemu import Ending
    from ...prove.run import Proof, TrialResult

VERDICTS = one_of(SURVIVES, TRIPLE_FAULT, LOOPS, UNKNOWN, NOT_APPLICABLE)


class ObservationJson(Document, what=one_of("raised", "taken", "entered")):
    """What the foreign CPU was seen to do.

    error_code: of an event that was raised
    rip: at the entry of a handler, as is all that follows
    """

    what: str
    vector: U8
    error_code: Natural = LEFT_OUT
    cr2: Hex | None = LEFT_OUT
    rip: Hex | None = LEFT_OUT
    rsp: Hex | None = LEFT_OUT
    rflags: Hex | None = LEFT_OUT
    cs: U16 | None = LEFT_OUT
    ss: U16 | None = LEFT_OUT
    frame: Raw | None = LEFT_OUT


class TrialJson(Document, predicted=VERDICTS):
    """One variant of a scenario, on the foreign CPU.

    not_run: why not
    differs: where it differs from the prediction
    habits: deviations of the foreign CPU that explain the difference
    """

    name: str
    predicted: str
    verdict: str
    agrees: bool
    not_run: str | None
    differs: str | None
    habits: list[str]
    events: list[ObservationJson]


class TrialsJson(Document):
    """One scenario.

    not_run: why it is not run at all on a foreign CPU
    """

    name: str
    ways: list[TrialJson]
    not_run: str = LEFT_OUT


class ProofJson(Document, predicted=VERDICTS):
    """One CPU of an image."""

    cpu: Natural
    verdict: str
    predicted: str
    agrees: bool
    assumed: list[str]
    reasons: list[str]
    scenarios: list[TrialsJson]


class ProveJson(Answer):
    """An image on Bochs."""

    image: ImageJson
    on: str
    cpus: list[ProofJson]


class OverflowJson(Document, guard={"minItems": 2, "maxItems": 2}):
    """The stack overflow of one CPU of a configuration in QEMU.

    guard: its first byte, and the first behind it
    vector: of the handler that was entered, on `stack`, with `rsp` and `rip`
    start: RSP when the recursion begins
    cr2: of the first page fault
    """

    cpu: Natural
    verdict: str
    predicted: str
    reason: str
    agrees: bool
    differs: str | None
    guard: list[Hex] | None
    vector: U8 | None
    error_code: Hex | None
    stack: str | None
    start: Hex | None
    cr2: Hex | None
    rsp: Hex | None
    rip: Hex | None


class ProveOverflowJson(Answer):
    """A configuration on QEMU."""

    image: ImageJson
    on: str
    cpus: list[OverflowJson]


class ProveGuestJson(Answer):
    """A kernel, or any guest, on QEMU.

    status: with which QEMU ended; null when it was stopped
    output: what the guest printed
    """

    guest: str
    on: str
    verdict: str
    reason: str
    status: int | None
    output: str
    log: LogJson


def prove(image: Snapshot, proofs: Sequence[Proof], cpu: str) -> ProveJson:
    """What `prove --on bochs --format json` prints."""
    return ProveJson(image=ImageJson.of(image), on=cpu, cpus=[_proof(one) for one in proofs])


def _proof(one: Proof) -> ProofJson:
    scenarios = [
        TrialsJson(name=name, ways=[_trial(result) for result in results]) for name, results in one.scenarios.items()
    ]
    scenarios += [TrialsJson(name=name, ways=[], not_run=why) for name, why in one.not_run.items()]
    return ProofJson.of(one, cpu=one.machine.cpu, assumed=list(one.machine.assumed), scenarios=scenarios)


def _trial(result: TrialResult) -> TrialJson:
    return TrialJson.of(
        result,
        name=result.trial.name,
        predicted=result.trial.predicted,
        not_run=result.trial.why or None,
        differs=result.differs or None,
        habits=list(result.deviations),
        events=[] if result.event_log is None else [_observation(one) for one in result.event_log.observations],
    )


def _observation(one: Observation) -> ObservationJson:
    shown = {
        "raised": ("error_code", "cr2"),
        "entered": ("cr2", "rip", "rsp", "rflags", "cs", "ss", "frame"),
    }
    return ObservationJson.of(one, **{name: one[name] for name in shown.get(one.what, ())})


def overflow(image: Snapshot, found: Sequence[Overflow], cpu: str) -> ProveOverflowJson:
    """What `prove CONFIG --on qemu --format json` prints."""
    return ProveOverflowJson(image=ImageJson.of(image), on=cpu, cpus=[_overflow(one) for one in found])


def _overflow(one: Overflow) -> OverflowJson:
    return OverflowJson.of(
        one,
        cpu=one.machine.cpu,
        agrees=one.verdict == one.predicted and not one.differs,
        differs=one.differs or None,
        start=one.initial_rsp,
    )


def guest(title: str, ending: Ending, symbols: Symbols, cpu: str) -> ProveGuestJson:
    """What `prove KERNEL --on qemu --format json` prints."""
    output = ending.output.decode(errors="replace")
    return ProveGuestJson.of(ending, guest=title, on=cpu, output=output, log=log("log", report(ending.log), symbols))
