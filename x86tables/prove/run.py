"""The variants of a scenario on a foreign CPU: prepare the machine, run it there, compare with the prediction."""

from __future__ import annotations

from ..delivery.events import EXCEPTION, INT, INT1, INTERRUPT, NMI, PF, SHUTDOWN, SS, Event
from ..delivery.scenarios import NOT_APPLICABLE, ORDER
from ..delivery.simulate import FETCHES, LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN
from ..delivery.state import CpuState
from ..errors import NotThere
from ..machine.machine import Machine
from ..machine.memory import PAGE
from ..machine.probe import Inaccessible
from ..machine.registers import IF
from ..records import Record
from ..tables.idt import Gate
from .event_log import GOES_ON, RUNS, EventLog, differences, predict
from .stimulus import PUSH_LOOP, Stimulus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..delivery.scenarios import Scenario, ScenarioOptions, Variant
    from ..machine.registers import Registers

MAXPHYADDR = 40  # of every CPU model that Bochs has
# Exceptions that Bochs can be made to deliver like any other; the rest it knows as something else.
INJECTED = frozenset(range(20)) - {2, 3} | frozenset(range(22, 28)) | {31}
# Scenarios that a foreign CPU cannot run, and why.
OURS = {"double-fault-questions": "it takes handlers away, which cannot be done on another CPU model"}
VERDICTS = {RUNS: SURVIVES, SHUTDOWN: TRIPLE_FAULT, GOES_ON: LOOPS}


class Trial(Record):
    """A variant, ready to run: the machine with code where it has to be, the stimulus, and what is predicted of both.

    `why` says why it cannot be run, if so.
    """

    name: str
    predicted: str
    machine: Machine
    stimulus: Stimulus
    handler_stack: int
    event_log: EventLog
    why: str = ""


class TrialResult(Record):
    """How a trial went. `verdict` is the foreign CPU's; `differs` says where the two differ, `deviations` explain it.

    A trial that could not be run has no event log, and the verdict `unknown`.
    """

    trial: Trial
    verdict: str
    event_log: EventLog | None = None
    differs: str = ""
    deviations: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether all went as predicted, or with a difference that is known and leads to the same verdict."""
        return not self.differs or (bool(self.deviations) and self.verdict == self.trial.predicted)


class Proof(Record):
    """One CPU: by scenario how each variant went. `reasons` say why something could not be proved, `not_run` why a
    scenario was not run at all."""

    machine: Machine
    scenarios: dict[str, tuple[TrialResult, ...]]
    predicted: str
    verdict: str
    reasons: tuple[str, ...] = ()
    not_run: dict[str, str] = {}  # noqa: RUF012 - never changed

    @property
    def agrees(self) -> bool:
        """Whether everything that was run went as predicted."""
        return self.verdict == self.predicted and all(
            result.agrees for results in self.scenarios.values() for result in results
        )


def prove(
    machine: Machine,
    scenarios: Iterable[Scenario],
    options: ScenarioOptions,
    run: Callable[[list[Trial]], Iterable[TrialResult]],
) -> Proof:
    """Take simulated scenarios of a machine to the CPU behind `run`; the first that can be run gives the verdict."""
    scenarios = list(scenarios)
    not_run = {scenario.name: OURS[scenario.name] for scenario in scenarios if scenario.name in OURS}
    scenarios = [scenario for scenario in scenarios if scenario.name not in OURS]
    ready = [(scenario.name, list(trials(machine, scenario, options))) for scenario in scenarios]
    ran = iter(list(run([trial for _, these in ready for trial in these if not trial.why])))
    results = {
        name: tuple(TrialResult(trial, UNKNOWN) if trial.why else next(ran) for trial in these) for name, these in ready
    }
    first = scenarios[0]
    # variants that cannot be caused there say nothing; if none can, nothing is known
    verdict = worst(
        result for result in results[first.name] if not result.trial.why or result.trial.predicted == UNKNOWN
    )
    if verdict == NOT_APPLICABLE and first.verdict != NOT_APPLICABLE:
        verdict = UNKNOWN
    reasons = (first.reason,) if first.verdict in (NOT_APPLICABLE, UNKNOWN) else first.remarks
    needs = [result.event_log.needs for result in results[first.name] if result.event_log and result.event_log.needs]
    return Proof(machine, results, first.verdict, verdict, (*reasons, *dict.fromkeys(needs)), not_run)


def trials(machine: Machine, scenario: Scenario, options: ScenarioOptions) -> Iterator[Trial]:
    """The variants of a scenario, each ready to run."""
    harness = Harness(machine)
    for variant in scenario.variants:
        yield _trial(harness, variant, options.handler_stack)


def _trial(harness: Harness, variant: Variant, handler_stack: int) -> Trial:
    nothing = Trial(
        variant.name, variant.verdict, harness.machine, Stimulus("push"), handler_stack, EventLog((), UNKNOWN)
    )
    simulation = variant.simulation
    if simulation is None or simulation.start is None or variant.verdict == UNKNOWN:
        return nothing.replace(why=variant.needs or variant.reason)
    event = simulation.deliveries[0].attempts[0].event
    stimulus = _stimulus(event, variant.name)
    if stimulus is None:
        return nothing.replace(why=f"{event.label} cannot be caused there")
    try:
        ready = harness.ready(simulation.start, stimulus)
    except NotThere as error:
        if event.vector not in INJECTED:
            return nothing.replace(why=str(error))
        # injected then, with what its instruction would have left
        stimulus = Stimulus("exception", event.vector, event.error_code or 0)
        cr2 = simulation.start.cr2 if event.cr2 is None else event.cr2
        ready = harness.ready(simulation.start.replace(cr2=cr2), stimulus)
    # what is predicted is what this machine does with addresses as narrow as those there
    narrow = ready.replace(maxphyaddr=MAXPHYADDR)
    event_log = predict(CpuState(narrow), stimulus, handler_stack)
    trial = Trial(variant.name, variant.verdict, ready, stimulus, handler_stack, event_log)
    verdict = VERDICTS.get(event_log.outcome, UNKNOWN)
    if verdict == variant.verdict:
        return trial
    if VERDICTS.get(predict(CpuState(ready), stimulus, handler_stack).outcome) == variant.verdict:
        return trial.replace(why=f"its physical addresses have {MAXPHYADDR} bits, which makes the verdict {verdict}")
    return trial.replace(why=f"prepared for it, the machine has another verdict: {verdict}")


def _stimulus(event: Event, name: str) -> Stimulus | None:
    """What brings an event about."""
    if event.kind == INTERRUPT:
        return Stimulus("interrupt", event.vector)
    if event.kind == NMI:
        return Stimulus("nmi")
    if event.kind in (INT, INT1):
        return Stimulus({(INT, 1): "int3", (INT1, 1): "int1"}.get((event.kind, event.length), "int"), event.vector)
    if event.kind != EXCEPTION:
        return None
    if event.vector in (PF, SS) and ("push" in name or "call" in name):
        return Stimulus("call" if "call" in name else "push")
    if event.vector in (0, 6):
        return Stimulus("ud2" if event.vector else "div")
    return Stimulus("exception", event.vector, event.error_code or 0) if event.vector in INJECTED else None


class Harness:
    """A machine's memory, copied, in which every handler pushes endlessly; and where an instruction may be put."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.memory = machine, machine.memory.copy()
        self._handlers = _handlers(machine)
        self._taken = {physical + at for physical in self._handlers for at in range(len(PUSH_LOOP))}
        for physical in self._handlers:
            self.memory.overlay(physical, PUSH_LOOP)

    def ready(self, registers: Registers, stimulus: Stimulus) -> Machine:
        """The machine with these registers and the first instruction at RIP, which may have moved for it.

        Interrupts are on when one has to come. NotThere when there is no place for the instruction.
        """
        memory, changes = self.memory, dict[str, object]()
        if stimulus.code:
            memory = memory.copy()
            changes["rip"], physical = self._place(registers, len(stimulus.code))
            memory.overlay(physical, stimulus.code)
        if stimulus.kind == "interrupt":
            changes["rflags"] = (registers.rflags or 2) | IF
        if stimulus.kind == "div":
            changes["general"] = {**registers.general, "rcx": 0}
        return self.machine.replace(registers.replace(**changes), memory)

    def _place(self, registers: Registers, size: int) -> tuple[int, int]:
        """A linear and a physical address for code of this privilege: at RIP, or between handlers."""
        candidates = [] if registers.rip is None else [registers.rip]
        for page in dict.fromkeys(linear & -PAGE for linear in self._handlers.values()):
            candidates += range(page + PAGE - 16, page, -16)
        for linear in candidates:
            try:
                physical = self.machine.translate(linear, FETCHES[registers.cpl == 3])
            except Inaccessible:
                continue
            if linear % PAGE <= PAGE - size and self._taken.isdisjoint(range(physical, physical + size)):
                return linear, physical
        raise NotThere("no page is known where an instruction of this privilege could stand")


def _handlers(machine: Machine) -> dict[int, int]:
    """Where the first instruction of a gate's handler is: physical -> linear address."""
    table = machine.table("idt")
    if table is None or machine.registers.idtr is None:
        return {}
    found = {}
    for at in range(0, len(table.data) - Gate.size + 1, Gate.size):
        if table.known(at, at + Gate.size):
            offset = Gate.parse(table.data[at : at + Gate.size]).offset
            for access in FETCHES:
                try:
                    found[machine.translate(offset, access)] = offset
                except Inaccessible:
                    continue
    return found


def compare(
    trial: Trial, observed: EventLog, predict_there: Callable[[Trial], tuple[EventLog, set[str]]]
) -> TrialResult:
    """Compare what was observed with what is predicted; `predict_there` predicts with the foreign CPU's deviations."""
    verdict = VERDICTS.get(observed.outcome, UNKNOWN)
    found = _differences(trial.event_log, observed)
    if not found:
        return TrialResult(trial, verdict, observed)
    event_log, deviations = predict_there(trial)
    explained = not _differences(event_log, observed)
    return TrialResult(trial, verdict, observed, found[0], tuple(sorted(deviations)) if explained else ())


def _differences(ours: EventLog, theirs: EventLog) -> list[str]:
    """As `differences`, but only as far as the foreign CPU came when it needed what the image does not hold."""
    if theirs.needs:
        count = len(theirs.observations)
        ours = ours.replace(observations=ours.observations[:count], outcome=UNKNOWN, memory=None)
    return differences(ours, theirs)


def worst(results: Iterable[TrialResult]) -> str:
    """The verdict that counts: the worst of all variants."""
    return max((result.verdict for result in results), key=ORDER.index, default=NOT_APPLICABLE)
