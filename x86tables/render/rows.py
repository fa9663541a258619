"""The rows of tables that both the text and the page of a machine show."""

from __future__ import annotations

from ..errors import NotThere
from ..machine.memory import PAGE
from ..machine.probe import Fault, FaultKind
from ..records import Record
from ..tables import vectors
from ..tables.gdt import SegmentDescriptor
from ..tables.selector import Selector
from ..tables.tss import Tss
from . import describe as words
from .data import entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from ..delivery.extent import Extent
    from ..machine.image import Snapshot
    from ..machine.machine import Machine, Table
    from ..tables.gdt import Entry, Gdt
    from ..tables.idt import Gate
    from ..tables.layout import Field
    from ..tables.legacy import LegacyGate

    Numbered: TypeAlias = "tuple[int, Gate | LegacyGate]"

RUN = 4  # so many gates in a row that differ by a constant stride alone are shown as one line


def title(machine: Machine, name: str) -> str:
    """`GDT`, `IVT`."""
    return "IVT" if machine.mode == "real" and name == "idt" else name.upper()


def missing(machine: Machine, name: str) -> str:
    """Why there is no such table."""
    try:
        machine._data(name)
    except NotThere as error:
        return str(error).partition(": ")[2]
    return ""


def gaps(table: Table) -> Iterator[str]:
    """What cannot be read of a table, and why."""
    for gap in table.gaps:
        part = "" if table.error else f"bytes {gap.start:#x} to {gap.stop - 1:#x} "
        yield f"{part}cannot be read: {gap.why}"


def count(machine: Machine, table: Table) -> str:
    """What a table holds by its limit: `: 16 slots`."""
    size = table.limit + 1
    if table.name in ("gdt", "ldt"):
        slots, rest = divmod(size, 8)
        return f": {slots} slots" + (f" and {words.size(rest)}" if rest else "")
    if table.name == "tss":
        return f": {size} bytes" + (", a 16-bit TSS" if not table.error and machine.tss16 is not None else "")
    entry = 4 if machine.mode == "real" else 16 if machine.wide else 8
    count, rest = divmod(size, entry)
    beyond = " (256 are read)" if count > 256 else ""
    return f": {count} {'vectors' if entry == 4 else 'gates'}{beyond}" + (f" and {words.size(rest)}" if rest else "")


def descriptors(machine: Machine, table: Table, gdt: Gdt, everything: bool) -> tuple[list[Entry], list[str]]:
    """The entries that are shown, and sentences on what is not."""
    foreign = 0
    pages = None if everything else named_pages(machine, table)
    if pages is None:
        found = entries(gdt, machine, table)
    else:
        found = entries(gdt, machine, table, [range(max(0, at - table.base), at - table.base + PAGE) for at in pages])
        gaps = sum((gap.stop + 7) // 8 - gap.start // 8 for gap in table.gaps)
        foreign = len(table.data) // 8 - gaps - sum(entry.slots for entry in found)
    shown = [entry for entry in found if entry.kind != "null" or not entry.index or any(entry.raw)]
    rest = []
    if empty := len(found) - len(shown):
        rest.append(f"{empty} empty slot{'s' if empty != 1 else ''} not shown")
    if foreign:
        rest.append(f"{foreign} slots not shown, in pages that no register or gate refers to (--all shows them)")
    if gdt.tail:
        rest.append(f"{words.size(len(gdt.tail))} after the last slot: {gdt.tail.hex()}")
    return shown, rest


def named_pages(machine: Machine, table: Table) -> tuple[int, ...] | None:
    """The pages, in order, of a large GDT or LDT in which segment registers, TR, LDTR and gates have their descriptors.

    None for a table of one page, which is shown whole.

    Xen's GDTR has its base 14 pages below Xen's own descriptors: what lies there is a guest's, or no table at all.
    """
    if table.limit < PAGE:
        return None
    ti = 4 if table.name == "ldt" else 0
    live = (s for s in machine.live_selectors if s & 4 == ti and s & ~7 <= table.limit)
    return tuple(sorted({(table.base + (s & ~7)) & -PAGE for s in live}))


def descriptor(entry: Entry) -> str:
    """A GDT entry in words."""
    value = entry.descriptor
    if entry.kind == "null":
        if not any(entry.raw):
            return "null"
        return f"null, but not zero: {entry.raw.hex()} (legal: the CPU never reads it)"
    if entry.kind == "refused":
        kind = words.refused(value.type, "system descriptor")
        return f"{kind}; raw {entry.raw.hex()}"
    if isinstance(value, SegmentDescriptor):
        text = words.segment(value)
        if value.kind != "code64" and (value.base or value.effective_limit != 0xFFFFFFFF):
            text += f"; {words.extent(value)}"
        return text
    text = words.meaning(value)
    return text + ("; truncated: its second half is beyond the limit" if entry.truncated else "")


def gates(machine: Machine, table: Table, everything: bool) -> tuple[list[list[Numbered]], list[str]]:
    """Runs of gates, and sentences on what is particular about them or not shown."""
    found: Sequence[Gate | LegacyGate] = machine.gates
    rest = []
    if machine.narrow_idt:
        rest.append(
            "it holds 8-byte gates of 32-bit mode, shown as such: in long mode the CPU takes two of them for one of "
            "16 bytes"
        )
        found = machine.legacy_idt
    known = [(v, g) for v, g in enumerate(found) if table.known(v * g.size, v * g.size + g.size)]
    shown = known if everything else [(v, g) for v, g in known if g.p or g.kind != "absent"]
    if hidden := len(known) - len(shown):
        rest.append(f"{hidden} absent gate{'s' if hidden != 1 else ''} not shown (--all shows them)")
    return list(_runs(shown)), rest


class GateRow(Record):
    """What is shown of a gate, or of a run of them: their vectors, the kind, the handler, the IST stack (`-` for none),
    DPL, and remarks; an absent gate has its vector alone."""

    vectors: str
    kind: str
    target: str = ""
    ist: str = ""
    dpl: str = ""
    remarks: tuple[str, ...] = ()


def gate_row(machine: Machine, image: Snapshot, run: list[Numbered]) -> GateRow:
    """The row of a run of gates."""
    (vector, gate), last = run[0], run[-1][0]
    if len(run) > 1:
        label = f"{vector}..{last}"
        stride = run[1][1].offset - gate.offset
        note = f"every {stride} bytes" if stride else "all the same"
    else:
        label, note = f"{vector:>3} {vectors.EXCEPTIONS[vector].mnemonic if vector < 32 else ''}", ""
    if gate.kind == "absent":
        return GateRow(label, "-")
    entry, stack = gate.offset, ""
    target = f"{gate.selector:#x}:{entry:#x}"
    ist = getattr(gate, "ist", 0)
    if gate.kind == "task-gate":
        target = f"{gate.selector:#x}"
        if task := machine.task(gate.selector):
            entry, stack = task.eip, f"stack {task.ss:#x}:{task.esp:#x}, CR3 {task.cr3:#x}"
            target += f" to {task.cs:#x}:{entry:#x}"
    name = image.symbols.place(entry) if image.symbols else None
    remarks = [remark for remark in (name, note, stack) if remark]
    if gate.kind == "refused":
        kind = words.not_gate(gate.s, gate.type, "gate") if machine.wide else words.type32(gate.type)
        remarks += [kind, f"raw {bytes(gate).hex()}"]
    if not gate.p:
        remarks.append("not present")
    upper = _upper_half(machine, gate.selector) if gate.kind != "task-gate" else None
    remarks += [upper] if upper else []
    kind = gate.kind.removesuffix("-gate32").replace("-gate16", "16")
    return GateRow(label, kind, target, f"IST{ist}" if ist else "-", str(gate.dpl), tuple(remarks))


def _runs(gates: Sequence[Numbered]) -> Iterator[list[Numbered]]:
    """The gates in order; from vector 32 on, gates in a row with handlers at a constant stride are one run."""
    if not gates:
        return
    offset = gates[0][1].field("offset").position
    rests = [values[:offset] + values[offset + 1 :] for values in (tuple(gate) for _, gate in gates)]
    start = 0
    while start < len(gates):
        stop = start + 1
        if gates[start][0] >= 32 and stop < len(gates):
            stride = gates[stop][1].offset - gates[start][1].offset
            while stop < len(gates) and rests[stop] == rests[start] and _follows(gates[stop - 1], gates[stop], stride):
                stop += 1
            if stop - start < RUN:
                stop = start + 1
        yield list(gates[start:stop])
        start = stop


def _follows(one: Numbered, other: Numbered, stride: int) -> bool:
    return other[0] == one[0] + 1 and other[1].offset - one[1].offset == stride


def _upper_half(machine: Machine, selector: int) -> str | None:
    """The remark on a gate whose selector points into the upper half of a wide descriptor; None for any other."""
    parsed = Selector.from_int(selector)
    if parsed.null or parsed.ti or not machine.wide:
        return None
    try:
        entry = machine.gdt.covering(selector)
        if entry.index == parsed.index:
            return None
        alone = SegmentDescriptor.from_int(machine.gdt.slot(parsed.index))
    except NotThere:
        return None
    return (
        f"selector {selector:#x} is the upper half of the {entry.kind} at {entry.selector:#x}; "
        f"taken alone: {words.segment(alone)}"
    )


def stack_rows(stack: Extent) -> list[str]:
    """`8 KiB down to 0x...`, then what lies below and above; for a stack that cannot be pushed to, why."""
    if stack.size == 0:
        why = stack.below.why if stack.below else ""
        if isinstance(stack.below, Fault) and stack.below.kind is FaultKind.NON_CANONICAL:
            why = "not canonical"
        return [f"{'no stack:' if stack.known else 'its size is'} {why}"]
    depth = words.size(stack.size) if stack.below else f"more than {words.size(1 << 20)}"
    guard = "guard below" if isinstance(stack.below, Fault) else "below"
    below, above = (end.why if end else "" for end in (stack.below, stack.above))
    if below and below == above:
        parts = [f"{guard} and above: {below}"]
    else:
        parts = [f"{guard}: {below}" if below else "no guard below"]
        parts += [f"above: {above or 'writable memory'}"] if stack.top % PAGE == 0 else []
    return [f"{depth} down to {stack.bottom:#x}", *parts]


def unread(table: Table, field: Field) -> str:
    """Why a field of the TSS has no value."""
    return "beyond the limit" if field.offset + field.width // 8 > table.limit + 1 else "cannot be read"


def ports(machine: Machine, table: Table) -> str:
    """The I/O map: its base, and the ports that ring 3 may use."""
    field = Tss.field("iopb")
    if not table.has(field):
        why = unread(table, field)
        return why + (": ring 3 has no ports" if why == "beyond the limit" else "")
    base = f"{machine.tss.iopb:#x}"  # the 32-bit TSS has it at the same place
    try:
        found = machine.io_map
    except NotThere as error:
        return f"{base}: not known: {error}"
    if found is None:
        return f"{base}, beyond the limit: ring 3 has no ports"
    runs = found.open_ports
    if not runs:
        return f"{base}: every port refused"
    shown = ", ".join(f"{run.start:#x}-{run.stop - 1:#x}" if len(run) > 1 else f"{run.start:#x}" for run in runs[:12])
    return f"{base}: open to ring 3: {shown}" + (f" and {len(runs) - 12} more" if len(runs) > 12 else "")
