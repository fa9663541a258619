"""Machines and their tables as plain values, ready for JSON."""

from __future__ import annotations

from ..errors import NotThere
from ..machine.registers import Registers, Segment, TableRegister
from ..tables.gdt import CallGate, Entry, Gdt, SegmentDescriptor
from ..tables.tss import STACKS, Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, TypeAlias

    from ..machine.image import Image
    from ..machine.machine import Machine, Stack, Table
    from ..machine.symbols import Symbols
    from ..tables.layout import Layout
    from ..tables.legacy import Tss32

    Observation: TypeAlias = "dict[tuple[Table, bool], dict[str, Any]]"

SCHEMA = 1


def hexadecimal(value: int | None) -> str | None:
    """How JSON writes an address or a register: `0x`, lower case, unpadded; None for what is not known."""
    return None if value is None else f"{value:#x}"


def about(image: Image) -> dict[str, Any]:
    """What every command's JSON says of the image."""
    return {"path": image.path, "format": image.format, "remarks": list(image.remarks)}


def dump(image: Image, machines: Iterable[Machine], tables: Iterable[str]) -> Iterator[str]:
    """What `dump --format json` prints, CPU by CPU: there may be hundreds, each with a table of 8192 entries."""
    import json

    head = json.dumps({"schema": SCHEMA, "image": about(image), "cpus": []}, indent=1)
    yield head.removesuffix("]\n}")
    seen: Observation = {}
    lead = "\n"
    for machine in machines:
        one = json.dumps(cpu(machine, image.symbols, tables, seen), indent=1)
        yield lead + "  " + one.replace("\n", "\n  ")
        lead = ",\n"
    yield "\n ]\n}\n"


def cpu(machine: Machine, symbols: Symbols, tables: Iterable[str], seen: Observation) -> dict[str, Any]:
    """One CPU with its tables in the terms of its own mode; descriptor tables in `seen` are not decoded again."""
    made: dict[str, Any] = {
        "cpu": machine.cpu,
        "mode": machine.mode,
        "assumed": list(machine.assumed),
        "registers": registers(machine.registers),
    }
    for name in tables:
        if machine.mode == "real" and name != "gdt":
            if name == "idt":
                made["ivt"] = _vectors(machine)
                table = machine.table("idt")
                if table is not None and table.gaps and not table.error:
                    made["ivt_missing"] = _missing(table)
            continue
        table = machine.table(name)
        if table is None:
            made[name] = _not_loaded(machine, name)
        elif table.error:
            made[name] = {"base": hexadecimal(table.base), "limit": table.limit, "error": table.error}
        else:
            made[name] = {"base": hexadecimal(table.base), "limit": table.limit}
            if name == "idt":
                made[name] |= _idt(machine, table, symbols)
            elif name == "tss":
                made[name] |= _tss(machine, table)
            else:
                key = table, machine.wide
                seen[key] = seen.get(key) or _gdt(machine, table)
                made[name] |= seen[key]
            if table.gaps:
                made[name]["missing"] = _missing(table)
    return made


def _missing(table: Table) -> list[dict[str, Any]]:
    """The bytes that cannot be read, and why."""
    return [{"from": hole.start, "to": hole.stop, "error": hole.why} for hole in table.gaps]


def registers(value: Registers) -> dict[str, Any]:
    """Registers by name; segment and table registers with what they cache."""
    made: dict[str, Any] = {}
    for name, held in value.asdict().items():
        if isinstance(held, Segment):
            made[name] = {
                "selector": held.selector,
                "base": hexadecimal(held.base),
                "limit": held.limit,
                "flags": hexadecimal(held.flags),
            }
        elif isinstance(held, TableRegister):
            made[name] = {"base": hexadecimal(held.base), "limit": held.limit}
        elif name != "general":
            made[name] = hexadecimal(held)
    made["cpl"] = value.cpl
    return made


def _not_loaded(machine: Machine, name: str) -> dict[str, Any] | None:
    """A TR that was never loaded is said to be so; an LDT is optional, and a register may not be known."""
    tr = machine.registers.tr
    if name == "tss" and tr is not None:
        return {"base": hexadecimal(tr.base), "limit": tr.limit, "error": "never loaded: TR is null"}
    return None


def descriptor(entry: Entry, wide: bool) -> dict[str, Any]:
    """One descriptor of a GDT or LDT."""
    made: dict[str, Any] = {"index": entry.index, "selector": entry.selector, "kind": entry.kind}
    value = entry.descriptor
    if isinstance(value, CallGate):
        made |= {"offset": hexadecimal(value.offset), "target": value.selector}
    else:
        made |= {
            "base": hexadecimal(value.base),
            "limit": value.limit,
            "effective_limit": value.effective_limit,
            "g": value.g,
        }
    if isinstance(value, SegmentDescriptor):
        made |= {"d_b": value.d_b, "l": value.l}
    made |= {"type": value.type, "s": value.s, "dpl": value.dpl, "p": value.p}
    if not isinstance(value, CallGate):
        made["avl"] = value.avl
    return made | {"truncated": entry.truncated, "raw": entry.raw.hex()}


def entries(gdt: Gdt, machine: Machine, table: Table) -> list[Entry]:
    """The descriptors that could be read, as the machine's mode has them: 8 bytes each outside of long mode."""
    walk = gdt.entries(wide=machine.wide)
    return [entry for entry in walk if table.known(entry.index * 8, entry.index * 8 + len(entry.raw))]


def _gdt(machine: Machine, table: Table) -> dict[str, Any]:
    gdt = machine.gdt if table.name == "gdt" else machine.ldt
    made: dict[str, Any] = {"entries": [descriptor(e, machine.wide) for e in entries(gdt, machine, table)]}
    if gdt.tail:
        made["tail"] = gdt.tail.hex()
    return made


def _idt(machine: Machine, table: Table, symbols: Symbols) -> dict[str, Any]:
    made = []
    for vector, gate in enumerate(machine.gates):
        if not table.known(vector * gate.size, vector * gate.size + gate.size):
            continue
        row: dict[str, Any] = {
            "vector": vector,
            "kind": gate.kind,
            "offset": hexadecimal(gate.offset),
            "selector": gate.selector,
            "ist": getattr(gate, "ist", 0),
            "dpl": gate.dpl,
            "p": gate.p,
        }
        entry = gate.offset
        if gate.kind == "task-gate":
            task = machine.task(gate.selector)
            row["task"] = None if task is None else _task(task)
            entry = entry if task is None else task.eip
        if symbols:
            row["handler"] = symbols.name(entry) if gate.p else None
        if symbols.lined:
            row["line"] = symbols.line(entry) if gate.p else None
        made.append(row | {"raw": bytes(gate).hex()})
    return {"gates": made}


def _task(task: Tss32) -> dict[str, Any]:
    """Where a task gate leads."""
    return {
        "cs": task.cs,
        "eip": hexadecimal(task.eip),
        "ss": task.ss,
        "esp": hexadecimal(task.esp),
        "cr3": hexadecimal(task.cr3),
    }


def _tss(machine: Machine, table: Table) -> dict[str, Any]:
    if (tss16 := machine.tss16) is not None:
        made = _fields(table, tss16, ("sp0", "sp1", "sp2", "ip", "flags"), ("ss0", "ss1", "ss2", "link", "ldt"))
        return made | {"raw": table.data[: tss16.size].hex()}
    if machine.wide:
        tss = machine.tss
        made = {
            "rsp": [*_fields(table, tss, STACKS[:3]).values()],
            "ist": [*_fields(table, tss, STACKS[3:]).values()],
            "stacks": [stack(name, extent) for name, extent in stacks(machine)],
        }
    else:
        addresses = ("esp0", "esp1", "esp2", "cr3", "eip", "eflags")
        made = _fields(table, machine.tss32, addresses, ("ss0", "ss1", "ss2", "link", "ldt"))
    made |= _fields(table, machine.tss, (), ("iopb",))  # at the same place in both
    try:
        ports = machine.io_map
    except NotThere:
        ports = None
    made["open_ports"] = None if ports is None else [[run.start, run.stop - 1] for run in ports.open_ports]
    made["raw"] = table.data[: Tss.size].hex()
    return made


def _fields(table: Table, tss: Layout, addresses: Iterable[str], numbers: Iterable[str] = ()) -> dict[str, Any]:
    """Fields of a TSS by name, None where the limit ends before one or it cannot be read."""
    made: dict[str, Any] = {}
    for name in addresses:
        made[name] = hexadecimal(getattr(tss, name)) if table.has(tss.field(name)) else None
    for name in numbers:
        made[name] = getattr(tss, name) if table.has(tss.field(name)) else None
    return made


def stacks(machine: Machine) -> list[tuple[str, Stack]]:
    """The stacks that a 64-bit TSS names, by name; pointers that are 0 or not known left out."""
    table = machine.table("tss")
    if table is None or not machine.wide:
        return []
    tss = machine.tss
    found = []
    for name in STACKS:
        top = getattr(tss, name)
        if top and table.has(tss.field(name)):
            found.append((name.upper(), machine.stack(top)))
    return found


def stack(name: str, value: Stack) -> dict[str, Any]:
    """One stack: its end, its lowest byte, and what stops a push below and above."""
    return {
        "name": name,
        "top": hexadecimal(value.top),
        "bottom": hexadecimal(value.bottom),
        "size": value.size,
        "below": value.below,
        "above": value.above,
    }


def _vectors(machine: Machine) -> Any:
    """The real-mode vector table as a list; when it cannot be read, why."""
    table = machine.table("idt")
    if table is None:
        return None
    try:
        table_of_vectors = machine.vector_table
    except NotThere as error:
        return {"base": hexadecimal(table.base), "limit": table.limit, "error": str(error)}
    return [
        {"vector": n, "segment": entry.segment, "offset": hexadecimal(entry.offset), "raw": bytes(entry).hex()}
        for n, entry in enumerate(table_of_vectors.vectors)
        if table.known(n * 4, n * 4 + 4)
    ]
