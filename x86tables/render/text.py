"""Machines and their tables as text for people: aligned, within 100 columns."""

from __future__ import annotations

from ..delivery.extent import Extent
from ..delivery.occupants import Occupants
from ..tables.gdt import Gdt
from ..tables.legacy import Tss32
from ..tables.tss import STACKS, Tss
from . import rows
from .data import stacks
from .lines import width, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..machine.image import Snapshot
    from ..machine.machine import Machine, Table
    from ..tables.legacy import Tss16

MODES = {
    "long64": "64-bit mode",
    "compat": "compatibility mode (32-bit code in long mode)",
    "protected32": "32-bit protected mode",
    "protected16": "16-bit protected mode",
    "virtual8086": "virtual-8086 mode",
    "real": "real mode",
}


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
                pages = None if name == "idt" or everything else rows.named_pages(machine, table)
                first = shown.setdefault((machine.mode, table, pages), machine.cpu)
                if first != machine.cpu:
                    place = f"base {table.base:#x}, limit {table.limit:#x}"
                    yield f"{rows.title(machine, name)}  {place}: shared with CPU {first}, shown there"
                    continue
            yield from _table(machine, image, name, table, everything, occupants)


def heading(machine: Machine, image: Snapshot) -> Iterator[str]:
    """What the CPU was doing, and what was assumed."""
    yield from wrap(f"CPU {machine.cpu}  {where(machine, image)}", " " * 7)
    known, segments = registers(machine)
    for start in range(0, len(known), 4):
        yield "  " + "  ".join(known[start : start + 4])
    yield from _wrapped(segments)
    yield from _wrapped(machine.assumed, "assumed: ", "; ")


def where(machine: Machine, image: Snapshot) -> str:
    """The mode, the ring, and the instruction that comes next."""
    r, line = machine.registers, MODES[machine.mode]
    if r.cpl is not None and machine.mode != "real":
        line += f", ring {r.cpl}"
    if r.rip is not None:
        line += f", at {_far(machine, r.rip)}{_named(image, r.rip)}"
    return line


def registers(machine: Machine) -> tuple[list[str], list[str]]:
    """`CR3 0x1000`, `CS 0x10`: the numbers but for RIP, and the segments; those that are known."""
    r = machine.registers
    known = [
        f"{name.upper()} {value:#x}" for name, value in r.asdict().items() if isinstance(value, int) and name != "rip"
    ]
    segments = [
        f"{name.upper()} {s.selector:#x}" for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr")
        if (s := getattr(r, name)) is not None
    ]  # fmt: skip
    return known, segments


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


def _table(
    machine: Machine, image: Snapshot, name: str, table: Table | None, everything: bool, occupants: Occupants
) -> Iterator[str]:
    title = rows.title(machine, name)
    if table is None:
        if why := rows.missing(machine, name):
            yield f"{title}  none: {why}"
        return
    yield f"{title}  base {table.base:#x}, limit {table.limit:#x}{rows.count(machine, table)}"
    for said in rows.gaps(table):
        yield from wrap(f"  {said}", " " * 4)
    if not table.error:
        yield from body(machine, image, name, table, everything, occupants)


def body(
    machine: Machine, image: Snapshot, name: str, table: Table, everything: bool, occupants: Occupants
) -> Iterator[str]:
    """The lines of a table that can be read, but for its heading."""
    if name in ("gdt", "ldt"):
        yield from _descriptors(machine, table, machine.gdt if name == "gdt" else machine.ldt, everything)
    elif name == "tss":
        yield from _tss(machine, image, table, occupants)
    elif machine.mode == "real":
        yield from _vectors(machine, table)
    else:
        yield from _gates(machine, image, table, everything)


def _gates(machine: Machine, image: Snapshot, table: Table, everything: bool) -> Iterator[str]:
    runs, rest = rows.gates(machine, table, everything)
    if machine.narrow_idt:
        yield from wrap(f"  {rest.pop(0)}", " " * 4)
    if runs:
        name = "name" if image.symbols else ""
        yield f"  {'vector':<12}{'type':<11}{'handler':<26}{'IST':<5}{'DPL':<5}{name}".rstrip()
    for run in runs:
        yield from _gate_lines(rows.gate_row(machine, image, run))
    yield from (f"  {said}" for said in rest)


def _gate_lines(row: rows.GateRow) -> Iterator[str]:
    """One line, and more where a long name leaves no room for the rest."""
    text = f"  {row.vectors:<12}{row.kind:<11}{row.target:<26}{row.ist:<5}{row.dpl:<5}"
    remark, indent = "", " " * len(text)
    for more in row.remarks:
        if remark and len(text) + len(remark) + len(more) + 3 > width():
            yield from wrap(f"{text}{remark};", indent)
            text, remark = indent, more
        else:
            remark += f"; {more}" if remark else more
    yield from wrap((text + remark).rstrip(), indent)


def _descriptors(machine: Machine, table: Table, gdt: Gdt, everything: bool) -> Iterator[str]:
    shown, rest = rows.descriptors(machine, table, gdt, everything)
    for entry in shown:
        yield from wrap(f"  {entry.index:>4}  {entry.selector:#06x}  {rows.descriptor(entry)}", " " * 16)
    yield from (f"  {said}" for said in rest)


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
                yield f"  {name.upper():<5} {rows.unread(table, Tss.field(name))}"
            elif name.upper() in found:
                yield from _stack(name.upper(), found[name.upper()], image)
            else:
                zeros.append(name.upper())
        if zeros:
            yield f"  zero: {', '.join(zeros)}"
    if machine.tss16 is None:
        yield from wrap(f"  I/O map  base {rows.ports(machine, table)}", " " * 11)


def _task(table: Table, tss: Tss32 | Tss16) -> Iterator[str]:
    """The stacks of a task that protected mode switches to, and where it goes on."""
    wide = isinstance(tss, Tss32)

    def value(name: str) -> str:
        field = tss.field(name)
        return f"{getattr(tss, name):#x}" if table.has(field) else rows.unread(table, field)

    for ring in range(3):
        pointer, selector = value(f"{'e' if wide else ''}sp{ring}"), value(f"ss{ring}")
        unread = [said for said in (pointer, selector) if " " in said]
        yield f"  ring {ring} stack  {unread[0] if unread else f'{selector}:{pointer}'}"
    names = ("eip", "cr3", "ldt", "link") if wide else ("ip", "flags", "ldt", "link")
    yield f"  task         {', '.join(f'{name} {value(name)}' for name in names)}"


def _stack(name: str, stack: Extent, image: Snapshot) -> Iterator[str]:
    """`IST1 0x...: 8 KiB down to 0x...`, then what lies below and above, a line each."""
    first, *rest = rows.stack_rows(stack)
    yield from wrap(f"  {name:<5} {stack.top:#x}{_named(image, stack.top)}: {first}", " " * 8)
    for part in rest:
        yield from wrap(f"        {part}", " " * 10)
