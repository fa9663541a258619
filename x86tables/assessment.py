"""One CPU judged: its verdict, stacks, scenarios and findings; and what those of an image come to."""

from __future__ import annotations

from .errors import UsageError
from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .checks import Finding, NotChecked, Report
    from .delivery.occupants import Occupants
    from .delivery.scenarios import Scenario, ScenarioOptions
    from .delivery.simulate import Simulation
    from .delivery.stacks import InterruptStack, StackInUse
    from .machine.machine import Machine


class Assessment(Record):
    """One CPU, judged: its verdict, the stack in use, every scenario asked for, and the findings.

    `interrupt_stacks` have their extent: that a handler is entered does not mean that it has the stack it needs.
    `accepted` counts findings that were left out because a baseline has them.
    """

    machine: Machine
    overflow: Scenario
    stack: StackInUse
    scenarios: tuple[Scenario, ...]
    interrupt_stacks: tuple[InterruptStack, ...]
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    accepted: int = 0

    @property
    def cpu(self) -> int:
        """The number of the CPU."""
        return self.machine.cpu

    @property
    def verdict(self) -> str:
        """The answer to: the stack has run into a page that cannot be pushed to, what happens?"""
        return str(self.overflow.verdict)

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        return str(self.overflow.reason)

    @property
    def handled_by(self) -> tuple[int, str] | None:
        """(vector, stack) of the handler that runs in the end; None when none does."""
        return self.overflow.handled_by

    @property
    def trace(self) -> Simulation | None:
        """The simulation that decided the verdict; None when nothing could be simulated."""
        return None if self.overflow.worst is None else self.overflow.worst.simulation

    @property
    def assumed(self) -> tuple[str, ...]:
        """What the image does not say and was inferred."""
        return self.machine.assumed

    @property
    def failed(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def first_to_fix(self) -> Finding | None:
        """The finding to fix first: an error in the gate whose delivery failed, else any error, else, where the stack
        in use is not guarded, a warning about a stack; None without such a finding."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        attempts = [attempt for one in (self.trace.deliveries if self.trace else ()) for attempt in one.attempts]
        for attempt in reversed(attempts):
            for finding in errors:
                if finding.table == "idt" and attempt.event.vector in finding.entries:
                    return finding
        if not errors and self.stack.verdict == "silent-corruption":
            errors = [finding for finding in self.findings if finding.rule[:3] == "STK" and finding.severity != "note"]
        return errors[0] if errors else None

    @property
    def outline(self) -> tuple[object, ...]:
        """All of it but the stack in use, without addresses: the same for CPUs that fare alike."""
        found = tuple((finding.rule, finding.severity, finding.where) for finding in self.findings)
        scenarios = tuple(scenario.outline for scenario in (self.overflow, *self.scenarios))
        return self.machine.mode, scenarios, found, self.not_checked, self.accepted


def scenario_names(names: Iterable[str]) -> tuple[str, ...]:
    """The scenarios asked for, `all` being every one; UsageError for an unknown name."""
    from .delivery.scenarios import DEFAULT, SCENARIOS

    wanted = tuple(names) or DEFAULT
    for name in wanted:
        if name != "all" and name not in SCENARIOS:
            raise UsageError(f"--scenario {name}: one of {', '.join(SCENARIOS)}, all")
    return tuple(SCENARIOS) if "all" in wanted else wanted


def assess(
    report: Report,
    names: Iterable[str] = (),
    options: ScenarioOptions | None = None,
    occupants: Occupants | None = None,
) -> Assessment:
    """A CPU's verdict by the scenarios in `names`, beside what the rules have found; `stack-overflow` is among them."""
    from .delivery.scenarios import ScenarioOptions, Situation

    situation = Situation(report.machine, options or ScenarioOptions(), occupants)
    return Assessment(
        report.machine,
        situation.run("stack-overflow"),
        situation.stack,
        tuple(map(situation.run, scenario_names(names))),
        situation.interrupt_stacks,
        report.findings,
        report.not_checked,
        report.accepted,
    )


class Outcome:
    """What the assessments of an image come to, as they pass: the worst verdict, and whether a finding is an error.

    `problems` are those of the image itself, each as bad as an error.
    """

    def __init__(self, problems: Sequence[str] = ()) -> None:
        self.problems = problems
        self.verdicts: set[str] = set()
        self.failed = bool(problems)

    def of(self, assessments: Iterable[Assessment]) -> Iterator[Assessment]:
        """The assessments, each noted as it passes."""
        for assessment in assessments:
            self.verdicts.add(assessment.verdict)
            self.failed = self.failed or assessment.failed
            yield assessment

    @property
    def verdict(self) -> str:
        """The worst; `not-applicable` counts only when all are so."""
        from .delivery.scenarios import NOT_APPLICABLE, ORDER

        return max(self.verdicts - {NOT_APPLICABLE}, key=ORDER.index, default=NOT_APPLICABLE)

    @property
    def status(self) -> int:
        """The exit status: 0 when all survive, no finding is an error, and the image has no problems."""
        return 0 if self.verdict == "survives" and not self.failed else 1
