"""What `dump` prints: machines and their tables."""

from __future__ import annotations

from ...delivery.occupants import Occupants
from ...documents import LEFT_OUT, Answer, Document, one_of
from ...errors import NotThere
from ...tables.gdt import CallGate, SegmentDescriptor
from ...tables.tss import STACKS, Tss
from ..data import entries, stacks
from . import ImageJson, stream
from .registers import RegistersJson
from .tables import (
    AT_LEAST_ONE,
    DescriptorJson,
    DescriptorTableJson,
    GateJson,
    IdtJson,
    MissingJson,
    StackJson,
    Tss16Json,
    Tss32Json,
    TssJson,
    UnreadableJson,
    VectorJson,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, TypeAlias

    from ...documents import Natural
    from ...machine.image import Snapshot
    from ...machine.machine import Machine, Table
    from ...machine.symbols import Symbols
    from ...tables.gdt import Entry
    from ...tables.layout import Layout

    Decoded: TypeAlias = "dict[tuple[Table, bool], DescriptorTableJson | IdtJson]"


KEPT = 8  # decoded tables that the next CPU may share


class CpuJson(
    Document,
    mode=one_of("long64", "compat", "protected32", "protected16", "virtual8086", "real"),
    ivt_missing=AT_LEAST_ONE,
):
    """One CPU with its tables in the terms of its own mode.

    assumed: what the image does not say and was inferred
    ivt: in real mode, instead of the IDT: the vectors that can be read
    """

    cpu: Natural
    mode: str
    assumed: list[str]
    registers: RegistersJson
    gdt: DescriptorTableJson | UnreadableJson | None = LEFT_OUT
    idt: IdtJson | UnreadableJson | None = LEFT_OUT
    tss: TssJson | Tss32Json | Tss16Json | UnreadableJson | None = LEFT_OUT
    ldt: DescriptorTableJson | UnreadableJson | None = LEFT_OUT
    ivt: list[VectorJson] | UnreadableJson | None = LEFT_OUT
    ivt_missing: list[MissingJson] = LEFT_OUT


class DumpJson(Answer, cpus=AT_LEAST_ONE):
    """The tables of every CPU."""

    image: ImageJson
    cpus: list[CpuJson]


def dump(image: Snapshot, machines: Iterable[Machine], tables: Iterable[str]) -> Iterator[str]:
    """What `dump --format json` prints, CPU by CPU: there may be hundreds, each with a table of 8192 entries."""
    decoded: Decoded = {}
    occupants = Occupants(image.machines)
    cpus = (cpu(machine, image.symbols, tables, decoded, occupants) for machine in machines)
    return stream(DumpJson.of(image, image=image, cpus=[]), "cpus", cpus)


def cpu(machine: Machine, symbols: Symbols, tables: Iterable[str], decoded: Decoded, occupants: Occupants) -> CpuJson:
    """One CPU; tables that CPUs share are decoded once."""
    made = CpuJson.of(machine, cpu=machine.cpu, assumed=list(machine.assumed))
    for name in tables:  # in this order
        table = machine.table(name)
        if machine.mode == "real" and name != "gdt":
            if name == "idt":
                made["ivt"] = _vectors(machine)
                if table is not None and table.gaps and not table.error:
                    made["ivt_missing"] = _missing(table)
        elif table is None:
            made[name] = _not_loaded(machine, name)
        elif table.error:
            made[name] = UnreadableJson(base=table.base, limit=table.limit, error=table.error)
        elif name == "tss":
            made[name] = _tss(machine, table, occupants)
        elif name == "idt" and not machine.wide:  # a task gate's handler is in a TSS of this CPU
            made[name] = _idt(machine, table, symbols)
        else:
            key = table, machine.wide
            if key not in decoded:
                if len(decoded) == KEPT:
                    decoded.clear()
                decoded[key] = _idt(machine, table, symbols) if name == "idt" else _gdt(machine, table)
            made[name] = decoded[key]
    return made


def _missing(table: Table) -> Any:
    """The bytes that cannot be read, and why."""
    return [MissingJson(from_=gap.start, to=gap.stop, error=gap.why) for gap in table.gaps] or LEFT_OUT


def _not_loaded(machine: Machine, name: str) -> UnreadableJson | None:
    """A TR that was never loaded is said to be so; an LDT is optional, and a register may not be known."""
    tr = machine.registers.tr
    if name == "tss" and tr is not None:
        return UnreadableJson(base=tr.base, limit=tr.limit, error="never loaded: TR is null")
    return None


def _gdt(machine: Machine, table: Table) -> DescriptorTableJson:
    gdt = machine.gdt if table.name == "gdt" else machine.ldt
    return DescriptorTableJson(
        base=table.base,
        limit=table.limit,
        entries=[_descriptor(entry) for entry in entries(gdt, machine, table)],
        tail=gdt.tail or LEFT_OUT,
        missing=_missing(table),
    )


def _descriptor(entry: Entry) -> DescriptorJson:
    value = entry.descriptor
    fields: dict[str, Any] = {name: getattr(value, name) for name in ("type", "s", "dpl", "p")}
    if isinstance(value, CallGate):
        fields |= {"offset": value.offset, "target": value.selector}
    else:
        fields |= {name: getattr(value, name) for name in ("base", "limit", "effective_limit", "g", "avl")}
    if isinstance(value, SegmentDescriptor):
        fields |= {"d_b": value.d_b, "l": value.l}
    return DescriptorJson.of(entry, **fields)


def _idt(machine: Machine, table: Table, symbols: Symbols) -> IdtJson:
    gates = []
    for vector, gate in enumerate(machine.gates):
        if not table.known(vector * gate.size, vector * gate.size + gate.size):
            continue
        fields: dict[str, Any] = {}
        entry = gate.offset
        if gate.kind == "task-gate":
            task = fields["task"] = machine.task(gate.selector)
            entry = entry if task is None else task.eip
        if symbols:
            fields["handler"] = symbols.name(entry) if gate.p else None
        if symbols.lined:
            fields["line"] = symbols.line(entry) if gate.p else None
        gates.append(GateJson.of(gate, vector=vector, ist=getattr(gate, "ist", 0), raw=bytes(gate), **fields))
    return IdtJson(base=table.base, limit=table.limit, gates=gates, missing=_missing(table))


def _tss(machine: Machine, table: Table, occupants: Occupants) -> TssJson | Tss32Json | Tss16Json:
    place: dict[str, Any] = {"base": table.base, "limit": table.limit, "missing": _missing(table)}
    if (tss16 := machine.tss16) is not None:
        raw = table.data[: tss16.size]
        return Tss16Json(**place, raw=raw, **_fields(table, tss16, Tss16Json))
    place |= {"raw": table.data[: Tss.size], "open_ports": _open_ports(machine)}
    if not machine.wide:
        return Tss32Json(**place, **_fields(table, machine.tss32, Tss32Json))
    tss = machine.tss
    pointers = [getattr(tss, name) if table.has(tss.field(name)) else None for name in STACKS]
    rows = [
        StackJson.of(stack, name=name, below=stack.below and stack.below.why, above=stack.above and stack.above.why)
        for name, stack in stacks(machine, occupants)
    ]
    iopb = tss.iopb if table.has(tss.field("iopb")) else None
    return TssJson(**place, rsp=pointers[:3], ist=pointers[3:], stacks=rows, iopb=iopb)


def _fields(table: Table, tss: Layout, kind: type[Document]) -> dict[str, Any]:
    """Those fields of a TSS that the JSON has, None where the limit ends before one or it cannot be read."""
    named = [field.name for field in tss.fields if field.name in kind.__annotations__]
    return {name: getattr(tss, name) if table.has(tss.field(name)) else None for name in named}


def _open_ports(machine: Machine) -> list[list[int]] | None:
    try:
        ports = machine.io_map
    except NotThere:
        return None
    return None if ports is None else [[run.start, run.stop - 1] for run in ports.open_ports]


def _vectors(machine: Machine) -> list[VectorJson] | UnreadableJson | None:
    """The real-mode vector table; when it cannot be read, why."""
    table = machine.table("idt")
    if table is None:
        return None
    try:
        vectors = machine.vector_table.vectors
    except NotThere as error:
        return UnreadableJson(base=table.base, limit=table.limit, error=str(error))
    return [
        VectorJson.of(entry, vector=number, raw=bytes(entry))
        for number, entry in enumerate(vectors)
        if table.known(number * 4, number * 4 + 4)
    ]
