"""Two CPUs compared by meaning: what differs in tables, protection, verdicts and findings, and what only moved."""

from __future__ import annotations

from .delivery.occupants import tss_stacks
from .machine.memory import PAGE
from .machine.registers import CET, FRED, LA57, LMA, NXE, PAE, SCE, SMAP, SMEP, UMIP, WP
from .records import Record
from .tables.gdt import TSS_AVAILABLE, TSS_BUSY, SegmentDescriptor, SystemDescriptor
from .tables.tss import Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import TypeAlias

    from .api import Image
    from .assessment import Assessment
    from .machine.machine import Machine
    from .machine.symbols import Symbols

    Value: TypeAlias = "int | bool | str | None"
    Row: TypeAlias = "Mapping[str, Value]"

ADDRESSES = {"offset", "base", "rsp0", *(f"ist{n}" for n in range(1, 8))}
PROTECTION = {
    "cr0": {"WP": WP},
    "cr4": {"PAE": PAE, "LA57": LA57, "UMIP": UMIP, "SMEP": SMEP, "SMAP": SMAP, "CET": CET, "FRED": FRED},
    "efer": {"SCE": SCE, "LMA": LMA, "NXE": NXE},
}


class Difference(Record):
    """A field that differs: of entry `index` of a table, or of the whole where it is None. A value of None stands for
    what is not there."""

    table: str
    index: int | None
    field: str
    before: Value
    after: Value


class Comparison(Record):
    """What differs between two CPUs.

    `moved` is how far all handlers have moved, 0 when they are where they were; None when there is no such distance.
    `relocated` are the addresses of tables and stacks that differ as after any boot. What one of the two does not know
    is not compared, and is in `unknown`.
    """

    before: int
    after: int
    moved: int | None
    differences: tuple[Difference, ...]
    relocated: tuple[Difference, ...] = ()
    unknown: tuple[str, ...] = ()


def compare(
    before: Assessment, after: Assessment, names: tuple[Symbols, Symbols], declared: bool = False, own: bool = False
) -> Comparison:
    """Two CPUs, each judged in its own image; `names` are the images' symbols.

    `declared`: one is a declaration, which is not loaded: nothing is busy, accessed, or in use. `own`: two CPUs of one
    machine, each of which has tables and stacks of its own, so that their addresses differ anyway.
    """
    first, second = before.machine, after.machine
    gates = _gates(first, second)
    moved = _moved(gates, names)
    found = [*_fields("idt", gates, moved or 0, names)]
    found += _fields("gdt", _pairs(_descriptors(first, declared), _descriptors(second, declared)))
    found += _fields("tss", _pairs(_pointers(first), _pointers(second)))
    found += _places(first, second)
    found += _protection(first, second, declared)
    relocated = [one for one in found if _only_moved(one, own or bool(moved), own)]
    found = [one for one in found if one not in relocated]
    found += _judgements(before, after, declared)
    unknown = [name for name in ("gdt", "idt", "tss") if _read(first, name) is None or _read(second, name) is None]
    return Comparison(first.cpu, second.cpu, moved, tuple(found), tuple(relocated), tuple(unknown))


def compare_images(
    before: Image, after: Image, cpus: tuple[int | None, int | None] = (None, None)
) -> tuple[list[Comparison], int, int]:
    """The CPUs of two images, each with the one of its number, or those two that `cpus` names; and how many CPUs each
    image has."""
    numbers = [
        [machine.cpu for machine in image.machines] if cpu is None else [image.cpu(cpu).cpu]
        for image, cpu in zip((before, after), cpus, strict=True)
    ]
    declared = (before.tables is None) != (after.tables is None)
    own = before is after
    found = []
    for one, other in zip(*numbers, strict=False):
        (first,) = before.check(cpus=[before.machines[one]])
        (second,) = after.check(cpus=[after.machines[other]])
        found.append(compare(first, second, (before.symbols, after.symbols), declared, own))
    return found, len(before.machines), len(after.machines)


# Tables as rows of fields, by the number of the entry


def _read(machine: Machine, name: str) -> bytes | None:
    table = machine.table(name)
    return None if table is None or table.error else table.data


def _gates(first: Machine, second: Machine) -> dict[int, tuple[Row | None, Row | None]]:
    def rows(machine: Machine) -> dict[int, Row]:
        table = machine.table("idt")
        if table is None or table.error or machine.mode == "real":
            return {}
        return {
            vector: gate.asdict() if any(gate) else {}
            for vector, gate in enumerate(machine.gates)
            if table.known(vector * gate.size, (vector + 1) * gate.size)
        }

    return _pairs(rows(first), rows(second))


def _descriptors(machine: Machine, declared: bool) -> dict[int, Row]:
    """The descriptors in use, by selector; without what LTR and loads of segments change, when one is declared."""
    table = machine.table("gdt")
    if table is None or table.error:
        return {}
    rows: dict[int, Row] = {}
    for entry in machine.gdt.entries(wide=machine.wide):
        if entry.kind == "null" or not table.known(entry.selector, entry.selector + len(entry.raw)):
            continue
        row: dict[str, Value] = {"kind": entry.kind, **entry.descriptor.asdict()}
        if isinstance(entry.descriptor, SegmentDescriptor) and entry.descriptor.s:
            row["accessed"] = bool(entry.descriptor.type & 1)
            row["type"] = entry.descriptor.type & ~1
        elif isinstance(entry.descriptor, SystemDescriptor) and entry.descriptor.type in (TSS_AVAILABLE, TSS_BUSY):
            row |= {"kind": "tss", "type": TSS_AVAILABLE, "busy": entry.descriptor.type == TSS_BUSY}
        if declared:
            row = {name: value for name, value in row.items() if name not in ("accessed", "busy")}
        rows[entry.selector] = row
    return rows


def _pointers(machine: Machine) -> dict[int, Row]:
    """RSP0 and IST1 to IST7; Linux keeps a user's RSP in RSP2, and RSP1 is not used."""
    stacks = {stack.field: stack.top for stack in tss_stacks(machine) if stack.field not in ("rsp1", "rsp2")}
    table = machine.table("tss") if stacks else None
    if table is not None and table.has(Tss.field("iopb")):
        stacks["iopb"] = machine.tss.iopb
    return {0: stacks} if stacks else {}


def _pairs(first: Mapping[int, Row], second: Mapping[int, Row]) -> dict[int, tuple[Row | None, Row | None]]:
    return {index: (first.get(index), second.get(index)) for index in sorted({*first, *second})}


# What differs


def _moved(gates: dict[int, tuple[Row | None, Row | None]], names: tuple[Symbols, Symbols]) -> int | None:
    """The distance that most handlers have moved; None where no distance is that of more than half of them."""
    distances: dict[int, int] = {}
    both = [(one["offset"], other["offset"]) for one, other in gates.values() if one and other and one["p"]]
    for offset, moved in both:
        assert isinstance(offset, int) and isinstance(moved, int)
        distances[moved - offset] = distances.get(moved - offset, 0) + 1
    if not both:
        return 0
    distance, count = max(distances.items(), key=lambda item: item[1])
    return distance if count * 2 > len(both) else None


def _fields(
    table: str,
    entries: dict[int, tuple[Row | None, Row | None]],
    moved: int = 0,
    names: tuple[Symbols, Symbols] | None = None,
) -> Iterator[Difference]:
    """The fields that differ, entry by entry; a handler that has moved with the others does not."""
    for index, (one, other) in entries.items():
        number = None if table == "tss" else index
        if not one or not other:
            if one or other:
                yield Difference(table, number, "", _summary(one), _summary(other))
            continue
        for field in dict.fromkeys((*one, *other)):
            before, after = one.get(field), other.get(field)
            handler = table == "idt" and field == "offset"
            if handler and isinstance(before, int) and isinstance(after, int) and _alike(before, after, moved, names):
                continue
            if before != after:
                yield Difference(table, number, field, before, after)


def _alike(before: int, after: int, moved: int, names: tuple[Symbols, Symbols] | None) -> bool:
    """Whether a handler has moved with the others, or has the same name in two builds."""
    if names is None or after - before == moved:
        return after - before == moved
    first, second = names[0].place(before), names[1].place(after)
    return bool(first) and first == second


def _summary(row: Row | None) -> Value:
    """What stands for a whole entry that the other side does not have."""
    if not row:
        return None
    return str(row["kind"]) if "kind" in row else "a gate"


def _places(first: Machine, second: Machine) -> Iterator[Difference]:
    """Where the tables are, and their limits."""
    for name in ("gdtr", "idtr", "tr"):
        one, other = getattr(first.registers, name), getattr(second.registers, name)
        if one is None or other is None:
            continue
        for field in ("selector", "base", "limit"):
            before, after = getattr(one, field, None), getattr(other, field, None)
            if before != after:
                yield Difference(name, None, field, before, after)


def _protection(first: Machine, second: Machine, declared: bool) -> Iterator[Difference]:
    """Bits of control registers that protect, where both are known; a declaration speaks of those that it sets."""
    for register, bits in PROTECTION.items():
        one, other = getattr(first.registers, register), getattr(second.registers, register)
        if one is None or other is None:
            continue
        for name, mask in bits.items():
            before, after = bool(one & mask), bool(other & mask)
            if before != after and not (declared and (register == "efer" or after > before)):
                yield Difference(register, None, name, before, after)


def _only_moved(one: Difference, moved: bool, own: bool) -> bool:
    """Whether an address differs only as it does from boot to boot, or from CPU to CPU: not one of a handler, and by
    whole pages unless each CPU has its own."""
    if one.field not in ADDRESSES or one.table == "idt" or not moved:
        return False
    if not isinstance(one.before, int) or not isinstance(one.after, int) or not (one.before and one.after):
        return False
    return own or one.field == "rsp0" or (one.after - one.before) % PAGE == 0


def _judgements(before: Assessment, after: Assessment, declared: bool) -> Iterator[Difference]:
    """Verdicts, sizes of interrupt stacks where both are known, and findings that only one of them has."""
    if before.verdict != after.verdict:
        yield Difference("verdict", None, "", before.verdict, after.verdict)
    sizes = [
        {stack.pointer.field: stack.extent.size for stack in each.interrupt_stacks if stack.extent.known}
        for each in (before, after)
    ]
    for field in sorted(sizes[0].keys() & sizes[1].keys()):
        if sizes[0][field] != sizes[1][field]:
            yield Difference("stack", None, field, sizes[0][field], sizes[1][field])
    findings = [_findings(each, declared) for each in (before, after)]
    for key in sorted(findings[0].keys() ^ findings[1].keys()):
        rule, where = key
        yield Difference("finding", None, f"{rule} {where}", findings[0].get(key), findings[1].get(key))


def _findings(assessment: Assessment, declared: bool) -> dict[tuple[str, str], str]:
    from .checks import RULES

    both = {rule.id for rule in RULES if not (declared and rule.phase)}
    return {(one.rule, one.where): one.severity for one in assessment.findings if one.rule in both}


def grouped(differences: Iterable[Difference]) -> Iterator[tuple[tuple[int, ...], Difference]]:
    """Differences in order, equal ones of several entries as one, with the numbers of the entries."""
    groups: dict[object, list[Difference]] = {}
    for one in differences:
        distance = None
        if one.field in ADDRESSES and isinstance(one.before, int) and isinstance(one.after, int):
            distance = one.after - one.before
        key = one.replace(index=None) if distance is None else (one.table, one.field, distance)
        groups.setdefault(key, []).append(one)
    for same in groups.values():
        yield tuple(one.index for one in same if one.index is not None), same[0]
