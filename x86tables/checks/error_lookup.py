"""What an error code names in an image, CPU by CPU: the gate, the descriptor or the page, and what is wrong with it."""

from __future__ import annotations

from ..delivery.deliver import deliver
from ..delivery.events import SHUTDOWN, Event
from ..errors import NotThere
from ..machine.paging import Access
from ..machine.probe import Fault, FaultKind, Inaccessible, Ok
from ..records import Record
from ..tables.gdt import SegmentDescriptor
from ..tables.selector import Selector, SelectorErrorCode
from . import judge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..delivery.events import Step
    from ..machine.image import Snapshot
    from ..machine.machine import Machine
    from ..machine.paging import Page
    from ..machine.probe import PageEntry
    from ..tables.gdt import Entry
    from ..tables.idt import Gate
    from ..tables.legacy import LegacyGate
    from ..tables.selector import PageFaultErrorCode
    from .catalogue import Finding

VECTORS = range(256)
# why there is no entry: the CPU is in real mode; the vector is beyond 255; the entry is beyond the table's limit, or
# the image does not hold it; the selector is null; there is no such table
REAL_MODE, NO_VECTOR, BEYOND_LIMIT, UNREADABLE, NULL, NO_TABLE = (
    "real-mode", "no-vector", "beyond-limit", "unreadable", "null", "no-table"
)  # fmt: skip


class Missing(Record):
    """Why there is no entry to show: one of the kinds above; the table's `limit`, and how many gates that covers."""

    kind: str
    limit: int = 0
    count: int = 0
    why: str = ""


class NamedGate(Record):
    """The gate that an error code names on a CPU.

    `step` is the check at which its delivery fails now, `shutdown` whether the CPU then shuts down, `needs` what would
    have to be known. `refuses_int`: its DPL refuses an INT of ring 3 with this code. `halved` is the vector that QEMU
    7.2 and older mean by the code, which write twice the vector.
    """

    cpu: int
    index: int
    missing: Missing | None = None
    halved: int | None = None
    address: int = 0
    gate: Gate | LegacyGate | None = None
    refuses_int: bool = False
    step: Step | None = None
    shutdown: bool = False
    needs: str | None = None
    findings: tuple[Finding, ...] = ()

    table = "idt"


class NamedDescriptor(Record):
    """The descriptor that an error code names on a CPU; `entry` begins in the slot before where it names an upper half.

    `registers` and `gates` name its selector. `code_of` are the gates that want it as 64-bit code segment, which it is
    not: they raise this very `code`.
    """

    cpu: int
    table: str
    index: int
    selector: int
    code: int
    missing: Missing | None = None
    address: int = 0
    entry: Entry | None = None
    registers: tuple[str, ...] = ()
    gates: tuple[int, ...] = ()
    code_of: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()


class NamedPage(Record):
    """The walk to the address of a page fault on a CPU.

    `page` is where it leads, or `why` it leads nowhere; `missing` when the CPU has no page faults. The access that the
    error `code` tells of meets `fault_code` there, for `fault_why`; None when it meets none. `unprotected`: it meets
    none only because CR0.WP is 0, being a supervisor's write to a read-only page.
    """

    cpu: int
    address: int
    code: int
    missing: Missing | None = None
    walk: tuple[PageEntry, ...] = ()
    page: Page | None = None
    why: str = ""
    fault_code: int | None = None
    fault_why: str = ""
    unprotected: bool = False


def selector_error(
    image: Snapshot, machines: Iterable[Machine], code: SelectorErrorCode
) -> list[NamedGate | NamedDescriptor]:
    """For each CPU the entry that a selector error code names."""
    look_up = named_gate if code.idt else named_descriptor
    return [look_up(image, machine, code) for machine in machines]


def named_gate(image: Snapshot, machine: Machine, code: SelectorErrorCode) -> NamedGate:
    """The gate that an error code with IDT=1 names on a CPU."""
    vector = code.index
    real = machine.mode == "real"
    halved = vector // 2 if not real and vector and not vector % 2 and vector // 2 in VECTORS else None
    found = NamedGate(machine.cpu, vector, halved=halved)
    named = _gate(machine, vector)
    if isinstance(named, Missing):
        return found.replace(missing=named)
    gate, address = named
    refuses = gate.p and gate.dpl < 3 and not code.ext and (vector >= 32 or vector in (3, 4))
    found = found.replace(address=address, gate=gate, refuses_int=refuses)
    return _delivered(found, machine).replace(findings=_findings(image, machine, "idt", vector))


def _gate(machine: Machine, vector: int) -> tuple[Gate | LegacyGate, int] | Missing:
    """A gate and its address, or why there is none."""
    if machine.mode == "real":
        return Missing(REAL_MODE)
    if vector not in VECTORS:
        return Missing(NO_VECTOR)
    try:
        gates = machine.gates
    except NotThere as error:
        return Missing(NO_TABLE, why=str(error))
    table = machine.table("idt")
    if vector >= len(gates) or table is None:
        return Missing(BEYOND_LIMIT, 0 if table is None else table.limit, len(gates))
    gate = gates[vector]
    at = vector * gate.size
    if not table.known(at, at + gate.size):
        return Missing(UNREADABLE, why=next(gap.why for gap in table.gaps if gap.stop > at))
    return gate, table.base + at


def _delivered(found: NamedGate, machine: Machine) -> NamedGate:
    """What stops the delivery of the vector on this machine as it is, with the steps of the manual."""
    if not machine.long_mode:
        return found
    exception = found.index < 32 and found.index != 2
    delivery = deliver(machine, Event.exception(found.index, 0) if exception else Event.interrupt(found.index))
    first = delivery.attempts[0]
    if first.fault is not None:
        return found.replace(step=first.steps[-1], shutdown=delivery.outcome == SHUTDOWN)
    return found.replace(needs=delivery.needs) if len(delivery.attempts) == 1 else found


def named_descriptor(image: Snapshot, machine: Machine, code: SelectorErrorCode) -> NamedDescriptor:
    """The descriptor that an error code with IDT=0 names on a CPU."""
    table = "ldt" if code.ti else "gdt"
    selector = int(Selector(index=code.index, ti=code.ti))
    found = NamedDescriptor(machine.cpu, table, code.index, selector, int(code))
    named = _entry(machine, table, code.index, selector)
    if isinstance(named, Missing):
        found = found.replace(missing=named)
    else:
        entry, address = named
        found = found.replace(
            entry=entry,
            address=address,
            registers=tuple(_registers(machine, selector)),
            gates=tuple(vector for vector, _ in _gates(machine, selector)),
            findings=_findings(image, machine, table, code.index),
        )
    return found.replace(code_of=tuple(_code_of(machine, code)))


def _entry(machine: Machine, name: str, index: int, selector: int) -> tuple[Entry, int] | Missing:
    """A descriptor and its address, or why there is none."""
    if machine.mode == "real":
        return Missing(REAL_MODE)
    if not selector:
        return Missing(NULL)
    try:
        gdt = machine.ldt if name == "ldt" else machine.gdt
    except NotThere as error:
        return Missing(NO_TABLE, why=str(error))
    table = machine.table(name)
    assert table is not None
    if index * 8 + 7 > table.limit:
        return Missing(BEYOND_LIMIT, table.limit)
    if not table.known(index * 8, index * 8 + 8):
        return Missing(UNREADABLE)
    entry = next(e for e in gdt.entries(wide=machine.wide) if 0 <= index - e.index < len(e.raw) // 8)
    return entry, table.base + entry.index * 8


def _registers(machine: Machine, selector: int) -> Iterator[str]:
    """The segment registers that hold a selector."""
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr"):
        segment = getattr(machine.registers, name)
        if segment is not None and segment.selector & ~3 == selector:
            yield name


def _gates(machine: Machine, selector: int) -> list[tuple[int, Gate | LegacyGate]]:
    """The gates that name a selector, present ones, by vector."""
    try:
        return [(v, gate) for v, gate in enumerate(machine.gates) if gate.p and gate.selector & ~3 == selector]
    except NotThere:
        return []


def _code_of(machine: Machine, code: SelectorErrorCode) -> list[int]:
    """The gates that lead to this selector as their code segment, when it is none."""
    table, at = machine.table("ldt" if code.ti else "gdt"), code.index * 8
    within = table is not None and at + 7 <= table.limit
    if not machine.long_mode or table is None or (within and not table.known(at, at + 8)):
        return []
    segment = SegmentDescriptor.parse(table.data[at : at + 8] if within else bytes(8))
    # in the order of the manual: what is no code, then what is not present (#NP), then what is no 64-bit code
    wrong = not segment.s or not segment.code or (segment.p and (not segment.l or segment.d_b))
    gates = _gates(machine, code.index * 8 + code.ti * 4) if wrong else []
    return [vector for vector, gate in gates if gate.kind in ("interrupt", "trap")]


def _findings(image: Snapshot, machine: Machine, table: str, index: int) -> tuple[Finding, ...]:
    """What the rules say of this entry."""
    if not machine.long_mode:
        return ()
    (report,) = judge(image, [machine])
    return tuple(finding for finding in report.findings if finding.table == table and index in finding.entries)


def page_fault(machines: Iterable[Machine], code: PageFaultErrorCode, address: int) -> list[NamedPage]:
    """For each CPU the walk to an address, and what the access that the code tells of meets there."""
    return [_page(machine, code, address) for machine in machines]


def _page(machine: Machine, code: PageFaultErrorCode, address: int) -> NamedPage:
    found = NamedPage(machine.cpu, address, int(code))
    if machine.mode == "real":
        return found.replace(missing=Missing(REAL_MODE))
    walk: list[PageEntry] = []
    try:
        found = found.replace(page=machine.space.walk(address, walk.append))
    except Inaccessible as error:
        found = found.replace(why=error.probe.why if isinstance(error.probe, Fault) else error.probe.needs)
    fault = machine.space.probe(address, Access(write=code.wr, user=code.us, fetch=code.id))
    if isinstance(fault, Fault) and fault.kind is not FaultKind.NON_CANONICAL:
        found = found.replace(fault_code=fault.error_code, fault_why=fault.why)
    if isinstance(fault, Ok) and found.page is not None and code.p and code.wr and not code.us:
        found = found.replace(unprotected=not found.page.writable)
    return found.replace(walk=tuple(walk))
