"""What `scan` prints: machines found in memory, each with its score and what speaks for it."""

from __future__ import annotations

from .describe import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.registers import Segment, TableRegister
    from ..scan import Scan
    from ..scan.machines import FoundMachine, Reason


def scan(path: str, format: str, found: Scan) -> Iterator[str]:
    """All machines, best first."""
    count = len(found.machines)
    machines = _count(count, "machine found", "machines found") if count else "no tables found"
    yield f"{path}: {format}, {machines}"
    looked = (
        _count(found.gates, "run of gates", "runs of gates"),
        _count(found.codes, "64-bit code segment", "64-bit code segments"),
        _count(found.roots, "page like a top-level page table", "pages like a top-level page table"),
    )
    yield f"  looked at {size(found.size)}: {', '.join(looked)}"
    for number, machine in enumerate(found.machines):
        yield ""
        yield f"machine {number}  score {machine.score} of 100"
        yield from (f"  {reason.points:+4}  {_words(reason)}" for reason in machine.reasons)
        yield from _machine(machine)


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _machine(machine: FoundMachine) -> Iterator[str]:
    if (root := machine.root) is not None:
        programs = f"; {machine.programs} more map the same handlers" if machine.programs else ""
        yield f"  page tables  {root.physical:#x}, {root.mode[0]} levels{programs}"
    if machine.user_root is not None:
        yield f"               {machine.user_root:#x} is used in ring 3 (page-table isolation)"
    shown = None
    for number, cpu in enumerate(machine.cpus):
        yield f"  CPU {number}"
        if cpu.idt is None:
            yield "    IDT  none found"
        elif cpu.idt == shown:
            yield "    IDT  as CPU 0"
        else:
            shown = shown or cpu.idt
            yield f"    IDT  {_place(cpu.idt.register, cpu.idt.physical)}, {cpu.idt.gates} gates present"
        yield f"    GDT  {_place(cpu.gdtr, cpu.gdt_physical)}"
        task = "" if cpu.tr is None or cpu.tr.null else f", selector {cpu.tr.selector:#x}"
        yield f"    TSS  {_place(cpu.tr, cpu.tss_physical)}{task}"


def _place(register: TableRegister | Segment | None, physical: int | None) -> str:
    if register is None or physical is None:
        return "none found"
    return f"{register.base:#x} (physical {physical:#x}), limit {register.limit:#x}"


def _words(reason: Reason) -> str:
    match reason.what:
        case "handlers":
            return f"the page tables map the handlers of {reason.count} of {reason.of} gates as supervisor code"
        case "idt-mapped":
            return "they map the IDT"
        case "first-vector":
            return "empty slots lie in front of its first gate: that it is vector 0 is a guess"
        case "idt-read-only":
            return "by a read-only address, as kernels do that protect it"
        case "gdt":
            return "a GDT has the 64-bit code segment that the gates name"
        case "gdt32":
            return "a GDT has flat 32-bit segments, as protected mode without paging uses them"
        case "operand":
            return "an operand of LGDT names it"
        case "tss":
            count = "a descriptor" if reason.count == 1 else f"{reason.count} descriptors"
            return f"{count} of a GDT lead{'s' * (reason.count == 1)} to a TSS whose stacks can be pushed to"
    raise AssertionError(reason.what)
