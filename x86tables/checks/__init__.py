"""The rule catalogue, and `judge`, which runs rules over an image."""

from __future__ import annotations

from ..delivery.occupants import Occupants
from ..machine.registers import FRED
from ..records import Record
from . import gates, gdt, idt, segments, stacks, tss
from .catalogue import DECLARED, LOADED, PHASES, PROFILES, SEVERITIES, TABLES, Finding, NotChecked, Rule, catalogue
from .cpu import CheckedCpu, Cpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.image import Snapshot
    from ..machine.machine import Machine

__all__ = ["PHASES", "PROFILES", "RULES", "SEVERITIES", "TABLES", "Finding", "NotChecked", "Report", "Rule", "judge"]

RULES = catalogue()
USUAL = tuple(rule for rule in RULES if not rule.profile)
assert {rule.check.__module__ for rule in RULES} == {m.__name__ for m in (gates, gdt, idt, segments, stacks, tss)}


class Report(Record):
    """What the rules say of one CPU: findings, the worst first, and the rules that could not be decided.

    `accepted` counts findings that were left out because they are known.
    """

    machine: Machine
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    accepted: int = 0

    @property
    def failed(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.severity == SEVERITIES[0] for finding in self.findings)


def judge(
    image: Snapshot,
    machines: Iterable[Machine] | None = None,
    rules: Iterable[Rule] = USUAL,
    declared: bool | None = None,
    occupants: Occupants | None = None,
) -> list[Report]:
    """Run rules over some machines of an image (default: all), each compared with the image's other machines.

    The rules are about 64-bit mode: a CPU that is in another has an empty report. `declared` says whether this is a
    configuration before LGDT and LTR, rather than a machine's state; default: the image's format is `config`.
    """
    before = image.format == "config" if declared is None else declared
    around = occupants or Occupants(image.machines)
    cpus = Cpus()
    cpus += [CheckedCpu(image, machine, before, cpus, around) for machine in image.machines if machine.long_mode]
    by_machine = {id(cpu.machine): cpu for cpu in cpus}
    wanted = image.machines if machines is None else machines
    return [
        Report(machine) if (cpu := by_machine.get(id(machine))) is None else _report(cpu, rules) for machine in wanted
    ]


def _report(cpu: CheckedCpu, rules: Iterable[Rule]) -> Report:
    findings: list[Finding] = []
    not_checked: list[NotChecked] = []
    for rule in rules:
        if rule.phase == (LOADED if cpu.declared else DECLARED):
            continue
        if rule.table in ("IDT", "TSS", "STK") and (cpu.registers.cr4 or 0) & FRED:
            not_checked.append(NotChecked(rule.id, "rules for FRED: with CR4.FRED events need neither IDT nor TSS"))
            continue
        cpu.cpus.take_notes()
        for finding in rule.check(cpu.image, cpu):
            findings.append(finding.replace(rule=rule.id, severity=finding.severity or rule.severity))
        for each, missing in cpu.cpus.take_notes().items():
            whose = "" if each is cpu else f"CPU {each.number}: "
            not_checked += [NotChecked(rule.id, whose + needs) for needs in missing]
    cpu.forget()
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(cpu.machine, tuple(findings), tuple(not_checked))
