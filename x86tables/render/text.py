"""Machines and their tables as text for people: aligned, within 100 columns."""

from __future__ import annotations

from ..delivery.extent import Extent
from ..delivery.occupants import Occupants
from ..errors import NotThere
from ..machine.memory import PAGE
from ..machine.probe import Fault, FaultKind
from ..tables import vectors
from ..tables.gdt import Gdt, SegmentDescriptor
from ..tables.legacy import Tss32
from ..tables.selector import Selector
from ..tables.tss import STACKS, Tss
from . import describe as words
from .data import entries, stacks
from .lines import width, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..machine.image import Snapshot
    from ..machine.machine import Machine, Table
    from ..tables.gdt import Entry
    from ..tables.idt import Gate
    from ..tables.layout import Field
    from ..tables.legacy import LegacyGate, Tss16

MODES = {
    "long64": "64-bit mode",
    "compat": "compatibility mode (32-bit code in long mode)",
    "protected32": "32-bit protected mode",
    "protected16": "16-bit protected mode",
    "virtual8086": "virtual-8086 mode",
    "real": "real mode",
}
RUN = 4  # so many gates in a row that differ by a constant stride alone are shown as one line


def dump(image: Snapshot, machines: Sequence[Machine], tables: Sequence[str], everything: bool) -> Iterator[str]:
    """The lines that `dump` prints."""
    count = len(image.machines)
    yield f"{image.path}: {image.format}, {count} CPU{'s' if count != 1 else ''}"
    for remark in image.remarks:
        yield from wrap(f"  note: {remark}", "    ")
    shown: dict[tuple[object, ...], int] = {}
    occupants = Occupants(image.machines)
    for machine in machines:
        yield ""
        yield from heading(machine, image)
        for name in tables:
            if machine.mode == "real" and name in ("tss", "ldt"):
                continue
            yield ""
            table = machine.table(name)
            if table is not None and name != "tss" and not table.error:
                pages = None if name == "idt" or everything else _named_pages(machine, table)
                first = shown.setdefault((machine.mode, table, pages), machine.cpu)
                if first != machine.cpu:
                    place = f"base {table.base:#x}, limit {table.limit:#x}"
                    yield f"{_title(machine, name)}  {place}: shared with CPU {first}, shown there"
                    continue
            yield from _table(machine, image, name, table, everything, occupants)


def heading(machine: Machine, image: Snapshot) -> Iterator[str]:
    """What the CPU was doing, and what was assumed."""
    r = machine.registers
    line = f"CPU {machine.cpu}  {MODES[machine.mode]}"
    if r.cpl is not None and machine.mode != "real":
        line += f", ring {r.cpl}"
    if r.rip is not None:
        line += f", at {_far(machine, r.rip)}{_named(image, r.rip)}"
    yield from wrap(line, " " * 7)
    known = [
        f"{name.upper()} {value:#x}" for name, value in r.asdict().items() if isinstance(value, int) and name != "rip"
    ]
    for start in range(0, len(known), 4):
        yield "  " + "  ".join(known[start : start + 4])
    segments = [
        f"{name.upper()} {s.selector:#x}" for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr")
        if (s := getattr(r, name)) is not None
    ]  # fmt: skip
    yield from _wrapped(segments)
    yield from _wrapped(machine.assumed, "assumed: ", "; ")


def _wrapped(parts: Iterable[str], title: str = "", between: str = "  ") -> Iterator[str]:
    """The parts in as many lines of 80 columns as they need, under one title."""
    line = ""
    for part in parts:
        if line and len(title) + len(line) + len(between) + len(part) > 77:
            yield f"  {title}{line}{between.rstrip()}"
            title, line = " " * len(title), ""
        line += (between if line else "") + part
    if line:
        yield f"  {title}{line}"


def _far(machine: Machine, rip: int) -> str:
    cs = machine.registers.cs
    return f"{cs.selector:#x}:{rip:#x}" if cs is not None else f"{rip:#x}"


def _named(image: Snapshot, address: int) -> str:
    name = image.symbols.place(address)
    return f" <{name}>" if name else ""


def _title(machine: Machine, name: str) -> str:
    return "IVT" if machine.mode == "real" and name == "idt" else name.upper()


def _table(
    machine: Machine, image: Snapshot, name: str, table: Table | None, everything: bool, occupants: Occupants
) -> Iterator[str]:
    title = _title(machine, name)
    if table is None:
        try:
            machine._data(name)
        except NotThere as error:
            yield f"{title}  none: {str(error).partition(': ')[2]}"
        return
    yield f"{title}  base {table.base:#x}, limit {table.limit:#x}{_count(machine, table)}"
    for gap in table.gaps:
        if table.error:
            yield from wrap(f"  cannot be read: {gap.why}", " " * 4)
        else:
            yield from wrap(f"  bytes {gap.start:#x} to {gap.stop - 1:#x} cannot be read: {gap.why}", " " * 4)
    if table.error:
        return
    if name in ("gdt", "ldt"):
        yield from _descriptors(machine, table, machine.gdt if name == "gdt" else machine.ldt, everything)
    elif name == "tss":
        yield from _tss(machine, image, table, occupants)
    elif machine.mode == "real":
        yield from _vectors(machine, table)
    else:
        yield from _gates(machine, image, table, everything)


def _count(machine: Machine, table: Table) -> str:
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


def _descriptors(machine: Machine, table: Table, gdt: Gdt, everything: bool) -> Iterator[str]:
    empty = foreign = 0
    pages = None if everything else _named_pages(machine, table)
    if pages is None:
        found = entries(gdt, machine, table)
    else:
        found = entries(gdt, machine, table, [range(max(0, at - table.base), at - table.base + PAGE) for at in pages])
        gaps = sum((gap.stop + 7) // 8 - gap.start // 8 for gap in table.gaps)
        foreign = len(table.data) // 8 - gaps - sum(entry.slots for entry in found)
    for entry in found:
        if entry.kind == "null" and entry.index and not any(entry.raw):
            empty += 1
            continue
        yield from wrap(f"  {entry.index:>4}  {entry.selector:#06x}  {_descriptor(entry)}", " " * 16)
    if empty:
        yield f"  {empty} empty slot{'s' if empty != 1 else ''} not shown"
    if foreign:
        yield f"  {foreign} slots not shown, in pages that no register or gate refers to (--all shows them)"
    if gdt.tail:
        yield f"  {words.size(len(gdt.tail))} after the last slot: {gdt.tail.hex()}"


def _named_pages(machine: Machine, table: Table) -> tuple[int, ...] | None:
    """The pages, in order, of a large GDT or LDT in which segment registers, TR, LDTR and gates have their descriptors.

    None for a table of one page, which is shown whole.

    Xen's GDTR has its base 14 pages below Xen's own descriptors: what lies there is a guest's, or no table at all.
    """
    if table.limit < PAGE:
        return None
    ti = 4 if table.name == "ldt" else 0
    live = (s for s in machine.live_selectors if s & 4 == ti and s & ~7 <= table.limit)
    return tuple(sorted({(table.base + (s & ~7)) & -PAGE for s in live}))


def _descriptor(entry: Entry) -> str:
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


def _gates(machine: Machine, image: Snapshot, table: Table, everything: bool) -> Iterator[str]:
    gates: Sequence[Gate | LegacyGate] = machine.gates
    if machine.narrow_idt:
        yield from wrap(
            "  it holds 8-byte gates of 32-bit mode, shown as such: in long mode the CPU takes two of them for one of "
            "16 bytes",
            " " * 4,
        )
        gates = machine.legacy_idt
    known = [(v, g) for v, g in enumerate(gates) if table.known(v * g.size, v * g.size + g.size)]
    shown = known if everything else [(v, g) for v, g in known if g.p or g.kind != "absent"]
    if shown:
        name = "name" if image.symbols else ""
        yield f"  {'vector':<12}{'type':<11}{'handler':<26}{'IST':<5}{'DPL':<5}{name}".rstrip()
    for run in _runs(shown):
        yield from _gate_lines(machine, image, run)
    hidden = len(known) - len(shown)
    if hidden:
        yield f"  {hidden} absent gate{'s' if hidden != 1 else ''} not shown (--all shows them)"


def _runs(gates: Sequence[tuple[int, Gate | LegacyGate]]) -> Iterator[list[tuple[int, Gate | LegacyGate]]]:
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


def _follows(one: tuple[int, Gate | LegacyGate], other: tuple[int, Gate | LegacyGate], stride: int) -> bool:
    return other[0] == one[0] + 1 and other[1].offset - one[1].offset == stride


def _gate_lines(machine: Machine, image: Snapshot, run: list[tuple[int, Gate | LegacyGate]]) -> Iterator[str]:
    """One line, and more where a long name leaves no room for the rest."""
    (vector, gate), last = run[0], run[-1][0]
    if len(run) > 1:
        label = f"{vector}..{last}"
        stride = run[1][1].offset - gate.offset
        note = f"every {stride} bytes" if stride else "all the same"
    else:
        label, note = f"{vector:>3} {vectors.EXCEPTIONS[vector].mnemonic if vector < 32 else ''}", ""
    kind = gate.kind.removesuffix("-gate32").replace("-gate16", "16") if gate.kind != "absent" else "-"
    text = f"  {label:<12}{kind:<11}"
    if gate.kind == "absent":
        yield text.rstrip()
        return
    entry, stack = gate.offset, ""
    target = f"{gate.selector:#x}:{entry:#x}"
    ist = getattr(gate, "ist", 0)
    if gate.kind == "task-gate":
        target = f"{gate.selector:#x}"
        if task := machine.task(gate.selector):
            entry, stack = task.eip, f"stack {task.ss:#x}:{task.esp:#x}, CR3 {task.cr3:#x}"
            target += f" to {task.cs:#x}:{entry:#x}"
    text += f"{target:<26}{f'IST{ist}' if ist else '-':<5}{gate.dpl:<5}"
    name = image.symbols.place(entry) if image.symbols else None
    remarks = [remark for remark in (name, note, stack) if remark]
    if gate.kind == "refused":
        kind = words.not_gate(gate.s, gate.type, "gate") if machine.wide else words.type32(gate.type)
        remarks += [kind, f"raw {bytes(gate).hex()}"]
    if not gate.p:
        remarks.append("not present")
    upper = _upper_half(machine, gate.selector) if gate.kind != "task-gate" else None
    remarks += [upper] if upper else []
    indent = " " * len(text)
    for remark in remarks[1:]:
        if len(text) + len(remarks[0]) + len(remark) + 3 > width():
            yield from wrap(f"{text}{remarks[0]};", indent)
            text, remarks[0] = indent, remark
        else:
            remarks[0] += f"; {remark}"
    yield from wrap(text + (remarks[0] if remarks else ""), indent)


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


def _vectors(machine: Machine, table: Table) -> Iterator[str]:
    entries_ = [(n, v) for n, v in enumerate(machine.vector_table.vectors) if table.known(n * 4, n * 4 + 4)]
    start = 0
    while start < len(entries_):
        stop = start + 1
        while stop < len(entries_) and entries_[stop][1] == entries_[start][1]:
            stop += 1
        vector, entry = entries_[start]
        label = f"{vector:#04x}" if stop - start == 1 else f"{vector:#04x}..{entries_[stop - 1][0]:#04x}"
        yield f"  {label:<12}{entry.segment:04x}:{entry.offset:04x}  ({entry.address:#x})"
        start = stop


def _tss(machine: Machine, image: Snapshot, table: Table, occupants: Occupants) -> Iterator[str]:
    if not machine.wide:
        yield from _task(table, machine.tss16 or machine.tss32)
    else:
        found = dict(stacks(machine, occupants))
        zeros = []
        for name in STACKS:
            if not table.has(Tss.field(name)):
                yield f"  {name.upper():<5} {_unread(table, Tss.field(name))}"
            elif name.upper() in found:
                yield from _stack(name.upper(), found[name.upper()], image)
            else:
                zeros.append(name.upper())
        if zeros:
            yield f"  zero: {', '.join(zeros)}"
    if machine.tss16 is None:
        yield from wrap(f"  I/O map  base {_ports(machine, table)}", " " * 11)


def _unread(table: Table, field: Field) -> str:
    return "beyond the limit" if field.offset + field.width // 8 > table.limit + 1 else "cannot be read"


def _task(table: Table, tss: Tss32 | Tss16) -> Iterator[str]:
    """The stacks of a task that protected mode switches to, and where it goes on."""
    wide = isinstance(tss, Tss32)

    def value(name: str) -> str:
        field = tss.field(name)
        return f"{getattr(tss, name):#x}" if table.has(field) else _unread(table, field)

    for ring in range(3):
        pointer, selector = value(f"{'e' if wide else ''}sp{ring}"), value(f"ss{ring}")
        unread = [said for said in (pointer, selector) if " " in said]
        yield f"  ring {ring} stack  {unread[0] if unread else f'{selector}:{pointer}'}"
    names = ("eip", "cr3", "ldt", "link") if wide else ("ip", "flags", "ldt", "link")
    yield f"  task         {', '.join(f'{name} {value(name)}' for name in names)}"


def _stack(name: str, stack: Extent, image: Snapshot) -> Iterator[str]:
    """`IST1 0x...: 8 KiB down to 0x..., then PTE not present; above: ...`, in one or two lines."""
    title = f"  {name:<5} {stack.top:#x}{_named(image, stack.top)}"
    if stack.size == 0:
        why = stack.below.why if stack.below else ""
        if isinstance(stack.below, Fault) and stack.below.kind is FaultKind.NON_CANONICAL:
            why = "not canonical"
        yield from wrap(f"{title}: {'no stack:' if stack.known else 'its size is'} {why}", " " * 8)
        return
    depth = words.size(stack.size) if stack.below else f"more than {words.size(1 << 20)}"
    yield f"{title}: {depth} down to {stack.bottom:#x}"
    guard = "guard below" if isinstance(stack.below, Fault) else "below"
    below, above = (end.why if end else "" for end in (stack.below, stack.above))
    if below and below == above:
        parts = [f"{guard} and above: {below}"]
    else:
        parts = [f"{guard}: {below}" if below else "no guard below"]
        parts += [f"above: {above or 'writable memory'}"] if stack.top % PAGE == 0 else []
    for part in parts:
        yield from wrap(f"        {part}", " " * 10)


def _ports(machine: Machine, table: Table) -> str:
    field = Tss.field("iopb")
    if not table.has(field):
        unread = _unread(table, field)
        return unread + (": ring 3 has no ports" if unread == "beyond the limit" else "")
    base = f"{machine.tss.iopb:#x}"  # the 32-bit TSS has it at the same place
    try:
        ports = machine.io_map
    except NotThere as error:
        return f"{base}: not known: {error}"
    if ports is None:
        return f"{base}, beyond the limit: ring 3 has no ports"
    runs = ports.open_ports
    if not runs:
        return f"{base}: every port refused"
    shown = ", ".join(f"{run.start:#x}-{run.stop - 1:#x}" if len(run) > 1 else f"{run.start:#x}" for run in runs[:12])
    return f"{base}: open to ring 3: {shown}" + (f" and {len(runs) - 12} more" if len(runs) > 12 else "")
