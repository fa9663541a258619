"""What `scan` prints: machines found in memory."""

from __future__ import annotations

from ...documents import Answer, Document, one_of
from . import ImageJson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...documents import Hex, Natural
    from ...machine.registers import Segment, TableRegister
    from ...scan import Scan
    from ...scan.machines import FoundCpu, FoundMachine


class FoundTableJson(Document):
    """A table: where it is linearly and physically.

    base: the address that GDTR, IDTR or TR would hold
    """

    base: Hex
    limit: Natural
    physical: Hex


class FoundTssJson(FoundTableJson):
    """A TSS, and the selector that TR would hold."""

    selector: Natural


class FoundCpuJson(Document):
    """The tables of one CPU; null where none was found."""

    cpu: Natural
    idt: FoundTableJson | None
    gdt: FoundTableJson | None
    tss: FoundTssJson | None


class ReasonJson(
    Document,
    what=one_of("handlers", "idt-mapped", "idt-read-only", "gdt", "tss", "gdt32", "operand"),
):
    """What speaks for a machine.

    points: what it adds to the score
    count: of so many (`of`), this holds for so many
    """

    what: str
    points: Natural
    count: Natural
    of_: Natural


class FoundMachineJson(Document, mode=one_of("4-level", "5-level", None)):
    """Page tables with an IDT whose handlers they map, and the CPUs that share them.

    score: 0 to 100: the points of all reasons
    cr3: the physical address of the top-level page table; null, as mode, for protected mode without paging
    user_cr3: what page-table isolation uses in ring 3
    programs: other page tables that map the same handlers
    """

    score: Natural
    reasons: list[ReasonJson]
    cr3: Hex | None
    mode: str | None
    user_cr3: Hex | None
    programs: Natural
    cpus: list[FoundCpuJson]


class CandidatesJson(Document):
    """How much was looked at, in bytes, and how many places in it looked like a table."""

    size: Natural
    gates: Natural
    codes: Natural
    roots: Natural


class ScanJson(Answer):
    """The machines that were found, best first."""

    image: ImageJson
    candidates: CandidatesJson
    machines: list[FoundMachineJson]


def scan(path: str, format: str, found: Scan) -> ScanJson:
    """What `scan --format json` prints."""
    return ScanJson(
        image=ImageJson(path=path, format=format, remarks=[]),
        candidates=CandidatesJson.of(found),
        machines=[_machine(machine) for machine in found.machines],
    )


def _machine(machine: FoundMachine) -> FoundMachineJson:
    return FoundMachineJson.of(
        machine,
        cr3=machine.root and machine.root.physical,
        mode=machine.root and machine.root.mode,
        user_cr3=machine.user_root,
        reasons=[
            ReasonJson(what=reason.what, points=reason.points, count=reason.count, of_=reason.of)
            for reason in machine.reasons
        ],
        cpus=[_cpu(number, cpu) for number, cpu in enumerate(machine.cpus)],
    )


def _cpu(number: int, cpu: FoundCpu) -> FoundCpuJson:
    tss = None
    if cpu.tr is not None and cpu.tss_physical is not None:
        tss = FoundTssJson(base=cpu.tr.base, limit=cpu.tr.limit, physical=cpu.tss_physical, selector=cpu.tr.selector)
    return FoundCpuJson(
        cpu=number,
        idt=None if cpu.idt is None else _table(cpu.idt.register, cpu.idt.physical),
        gdt=_table(cpu.gdtr, cpu.gdt_physical),
        tss=tss,
    )


def _table(register: TableRegister | Segment | None, physical: int | None) -> FoundTableJson | None:
    if register is None or physical is None:
        return None
    return FoundTableJson(base=register.base, limit=register.limit, physical=physical)
