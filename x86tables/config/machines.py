"""A configuration at addresses: a machine per CPU to judge, and what that assumes of the boot code."""

from __future__ import annotations

from bisect import bisect_right
from functools import partial

from ..errors import UsageError
from ..machine.coverage import Coverage
from ..machine.image import Snapshot
from ..machine.machine import Machine
from ..machine.paging import canonical
from ..machine.registers import LA57, LMA, LME, NXE, PAE, SCE, SMAP, SMEP, TableRegister
from ..machine.symbols import Symbols
from ..machine.synthetic import LONG_MODE, lay_out, load
from ..tables import vectors
from ..tables.gdt import SegmentDescriptor, SystemDescriptor
from .addresses import PLACEHOLDERS, placeholders
from .layout import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..machine.registers import Registers, Segment
    from ..machine.synthetic import Mapping
    from .compiled import CompiledTables, Lookup


def image(tables: CompiledTables, find: Lookup, segments: Iterable[Mapping] = ()) -> Snapshot:
    """The declaration as an Image of one Machine per CPU, before LGDT and LTR: all in one physical memory.

    `segments` are what a linked kernel maps. Symbols that have no address get a placeholder, and a remark says so.
    """
    placed, names = placeholders(tables, find), {}

    def known(name: str) -> int:
        names[name] = placed[name] if name in placed else find(name)
        return names[name]

    mappings = layout(tables, known, segments)
    levels = 5 if tables.config.machine.la57 else 4
    for table in (tables.gdt, tables.idt, *tables.tss):
        if not canonical(table.place.at(known), levels):
            raise UsageError(
                f"{tables.source.path}: {table.name} at {table.place.at(known):#x}: not a canonical address"
            )
    memory, cr3 = lay_out(mappings, [(table.place.at(known), table.build(known)) for table in tables.all], levels)
    starts = [mapping.address for mapping in mappings]
    coverage = Coverage(
        (range(m.address, m.address + m.size) for m in mappings),
        partial(_name, mappings, starts, bool(placed)),
    )
    known_stacks = {(s.bottom.at(known), s.top.at(known)) for s in tables.stacks if s.bottom is not None}
    stacks = tuple(range(*ends) for ends in sorted(known_stacks))
    machines = tuple(
        Machine(
            registers.replace(cr3=cr3),
            memory,
            cpu=cpu,
            vendor=tables.config.machine.vendor,
            maxphyaddr=52,
            declared=coverage,
            stacks=stacks,
        )
        for cpu, registers in enumerate(_registers(tables, known))
    )
    remarks = tuple(_remarks(tables, known, placed))
    symbols = Symbols((address, name) for name, address in names.items())
    return Snapshot(tables.source.path, "config", memory, machines, symbols, remarks)


def _name(mappings: list[Mapping], starts: list[int], placed: bool, linear: int) -> str:
    """How an undeclared address is named: a placeholder address would mean nothing."""
    if not placed or linear >> 40 != PLACEHOLDERS >> 40:
        return hex(linear)
    number = bisect_right(starts, linear)
    near = [(mapping.address - linear, f"below {mapping.name}") for mapping in mappings[number : number + 1]]
    near += [(linear - m.address - m.size + 1, f"above {m.name}") for m in mappings[max(0, number - 1) : number]]
    return f"the memory {min(near)[1]}"


def _registers(tables: CompiledTables, find: Lookup) -> Iterator[Registers]:
    """What the declaration says of each CPU's registers; RSP on the stack that the kernel runs on."""
    machine = tables.config.machine
    stacks = {(stack.cpu, stack.slot): stack for stack in tables.stacks}
    selectors = {item.name: item.offset for item in tables.gdt.items}
    descriptors = {item.offset: item.at(find) for item in tables.gdt.items}

    def loaded(selector: int) -> Segment:
        descriptor = descriptors[selector]
        assert isinstance(descriptor, SegmentDescriptor | SystemDescriptor)
        return load(selector, descriptor)

    common = LONG_MODE.replace(
        cs=loaded(tables.code),
        ss=loaded(tables.data) if tables.data else LONG_MODE.ss,
        cr4=PAE | (LA57 if machine.la57 else 0) | (SMEP if machine.smep else 0) | (SMAP if machine.smap else 0),
        efer=LME | LMA | NXE | (SCE if tables.star is not None else 0),
        star=tables.star or 0,
        gdtr=TableRegister(tables.gdt.place.at(find), tables.gdt.size - 1),
        idtr=TableRegister(tables.idt.place.at(find), tables.idt.size - 1),
    )
    for cpu, tss in enumerate(tables.tss):
        stack = stacks.get((cpu, "stack")) or stacks.get((cpu, "rsp0"))
        yield common.replace(rsp=stack.top.at(find) if stack else None, tr=loaded(selectors[tss.items[0].name]))


def _remarks(tables: CompiledTables, find: Lookup, placed: dict[str, int]) -> Iterator[str]:
    guards = [(s.bottom.plus(-s.guard), s.bottom) for s in tables.stacks if s.guard and s.bottom is not None]
    guards += [(memory.start, memory.stop) for memory in tables.memory if not memory.permissions]
    if guards:
        shown = [[str(end) if end.symbol in placed else hex(end.at(find)) for end in guard] for guard in guards]
        ranges = ", ".join(f"[{start}, {stop})" for start, stop in shown)
        yield f"assumes that the boot code unmaps {ranges}; confirm with check on a dump"
    if placed:
        names = sorted(placed)
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"judged at placeholder addresses, for lack of real ones: {some}"
    gates = {handler.vector for handler in tables.handlers}
    for mnemonic, line in tables.source.comments.items():
        if mnemonic in vectors.BY_MNEMONIC and (number := vectors.number(mnemonic)) not in gates:
            why = f"line {line} is a comment, and gate {number} is missing"
            yield f'{why}: a key that begins with # stands in quotes, "{mnemonic}" = ...'
    running = {stack.cpu for stack in tables.stacks if stack.slot in ("stack", "rsp0")}
    if missing := set(range(len(tables.tss))) - running:
        cpus = f"CPU{'s' * (len(missing) > 1)} {vectors.ranges(missing)}"
        where = "[cpu]" if len(tables.tss) == 1 else f"the [[cpu]] of {cpus}"
        yield f"the kernel's stack is not declared: add stack = {{ bottom = SYMBOL, size = N }} to {where}"
