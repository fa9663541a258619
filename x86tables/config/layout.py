"""Tables at addresses: a machine per CPU to judge, and what that takes for granted of the boot code."""

from __future__ import annotations

from itertools import pairwise

from ..errors import NotThere
from ..machine.image import Image
from ..machine.memory import PAGE
from ..machine.paging import canonical
from ..machine.registers import LA57, LMA, LME, NXE, PAE, SCE, SMAP, SMEP, Registers
from ..machine.symbols import Symbols
from ..machine.synthetic import Mapping, synthetic_machine
from ..records import Record
from ..tables.gdt import Gdt
from ..tables.idt import Idt
from ..tables.tss import Tss
from .compiled import CompiledTables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .compiled import CompiledTable, Lookup

MADE_UP = 0xFFFF_C000_0000_0000  # where symbols without an address are put, to judge the tables all the same
MOST = 256 << 20  # bytes of memory that a declared machine may have
IMPLIED, LINKED, DECLARED, GUARD = range(4)  # whose word on a page counts for more


class Claim(Record):
    """What somebody says of the pages from `start` to before `stop`; the highest `rank` is believed."""

    start: int
    stop: int
    permissions: str
    rank: int
    name: str


class Segment(Record):
    """A loadable segment of a linked kernel: linear addresses, and letters of r, w and x."""

    start: int
    stop: int
    permissions: str


def lookup(tables: CompiledTables, symbols: Symbols | None = None, path: str = "") -> Lookup:
    """The address of a symbol: from `symbols` (read from `path`), else from the configuration. NotThere without one.

    UsageError when both know it and differ: a configuration that was not kept up to date.
    """

    def find(name: str) -> int:
        told = tables.known.get(name)
        try:
            found = symbols.address(name) if symbols else None
        except NotThere as error:
            if told is None:
                raise NotThere(f"{path}: {error}") from None
            return told
        if found is not None and told is not None and found != told:
            message = f"{told:#x} here, but {found:#x} in {path}: take the entry out"
            raise tables.source.mistake(("symbols", name), message)
        if found is None and told is None:
            raise NotThere(f"no address for {name}: give it in [symbols], or --symbols KERNEL.elf")
        return found if found is not None else told or 0

    return find


def image(tables: CompiledTables, find: Lookup, segments: Iterable[Segment] = ()) -> Image:
    """The declaration as an Image of one Machine per CPU, before LGDT and LTR.

    What is mapped: the segments of a linked kernel (`segments`), over them the regions declared, over these the guards;
    and the pages of tables, stacks and handlers of which nobody said anything. Symbols that have no address get one
    that is made up, and a remark says so.
    """
    made_up, names = _made_up(tables, find), {}

    def known(name: str) -> int:
        names[name] = made_up[name] if name in made_up else find(name)
        return names[name]

    claims = list(_claims(tables, known, segments))
    mappings = _areas(tables, claims)
    gdt, idt = (_at(table, known) for table in (tables.gdt, tables.idt))
    machines = []
    placed = [_at(table, known) for table in tables.all]
    mappings = [_filled(mapping, placed) for mapping in mappings]
    for number, table in enumerate(tables.tss):
        at, data = _at(table, known)
        machine = synthetic_machine(
            mappings,
            gdt=(gdt[0], Gdt.parse(gdt[1])),
            idt=(idt[0], Idt.parse(idt[1])),
            tss=(at, Tss.parse(data)),
            registers=_registers(tables, number, known),
            vendor=tables.config.machine.vendor,
            cpu=number,
        )
        if machine.registers.rsp == 0:
            machine = machine.replace(machine.registers.replace(rsp=None))
        machines.append(machine)
    remarks = tuple(_remarks(tables, known, made_up))
    symbols = Symbols((address, name) for name, address in names.items())
    return Image(tables.source.path, "config", machines[0].memory, tuple(machines), symbols, remarks)


def _at(table: CompiledTable, find: Lookup) -> tuple[int, bytes]:
    return table.place.at(find), table.build(find)


def _remarks(tables: CompiledTables, find: Lookup, made_up: dict[str, int]) -> Iterator[str]:
    guards = [(s.bottom.plus(-s.guard), s.bottom) for s in tables.stacks if s.guard and s.bottom is not None]
    guards += [(region.start, region.stop) for region in tables.regions if not region.permissions]
    if guards:
        shown = [[str(end) if end.symbol in made_up else hex(end.at(find)) for end in guard] for guard in guards]
        ranges = ", ".join(f"[{start}, {stop})" for start, stop in shown)
        yield f"assumes that the boot code unmaps {ranges}; confirm with check on a dump"
    if made_up:
        names = sorted(made_up)
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"judged at made-up addresses, for want of real ones: {some}"


def _registers(tables: CompiledTables, cpu: int, find: Lookup) -> Registers:
    """What the declaration says of the registers; RSP on the stack that the kernel runs on."""
    machine = tables.config.machine
    stacks = {stack.slot: stack for stack in tables.stacks if stack.cpu == cpu}
    stack = stacks.get("stack") or stacks.get("rsp0")
    return Registers(
        rsp=stack.top.at(find) if stack else 0,
        cr4=PAE | (LA57 if machine.la57 else 0) | (SMEP if machine.smep else 0) | (SMAP if machine.smap else 0),
        efer=LME | LMA | NXE | (SCE if tables.star is not None else 0),
        star=tables.star or 0,
    )


# Memory


def _claims(tables: CompiledTables, find: Lookup, segments: Iterable[Segment]) -> Iterator[Claim]:
    for table in tables.all:
        start = table.place.at(find)
        yield Claim(start, start + table.size, "rw", IMPLIED, table.name)
    for entry in tables.handlers:
        start = entry.address.at(find)
        yield Claim(start, start + 1, "rx", IMPLIED, "handlers")
    for stack in tables.stacks:
        top = stack.top.at(find)
        yield Claim(top - (stack.size or PAGE), top, "rw", IMPLIED, stack.name)
        if stack.guard and stack.bottom is not None:
            bottom = stack.bottom.at(find)
            if (bottom | stack.guard) % PAGE:
                message = (
                    f"[{bottom - stack.guard:#x}, {bottom:#x}) is no row of whole pages: align the stack to {PAGE}"
                )
                raise tables.source.mistake((*stack.path, "guard"), message)
            yield Claim(bottom - stack.guard, bottom, "", GUARD, f"guard of {stack.name}")
    for region in tables.regions:
        start, stop = region.start.at(find), region.stop.at(find)
        if stop <= start:
            raise tables.source.mistake(region.path, f"the end {stop:#x} is not behind the start {start:#x}")
        if not region.permissions and (start | stop) % PAGE:
            raise tables.source.mistake(region.path, f"a guard is whole pages: [{start:#x}, {stop:#x}) is not")
        yield Claim(start, stop, region.permissions, DECLARED if region.permissions else GUARD, region.name)
    for segment in segments:
        yield Claim(segment.start, segment.stop, segment.permissions, LINKED, "kernel")


def _areas(tables: CompiledTables, claims: list[Claim]) -> list[Mapping]:
    """The areas of memory that the claims come to; equal ones of one page join their permissions."""
    levels = 5 if tables.config.machine.la57 else 4
    claims = [c.replace(start=c.start & -PAGE, stop=c.stop + PAGE - 1 & -PAGE) for c in claims]
    # claims about addresses that are not canonical are left to the rules, which say what is wrong with them
    claims = [c for c in claims if c.start >= 0 and canonical(c.start, levels) and canonical(c.stop - 1, levels)]
    edges = sorted({edge for claim in claims for edge in (claim.start, claim.stop)})
    mappings: list[Mapping] = []
    for start, stop in pairwise(edges):
        here = [claim for claim in claims if claim.start <= start and stop <= claim.stop]
        if not here:
            continue
        rank = max(claim.rank for claim in here)
        names = [claim.name for claim in here if claim.rank == rank]
        permissions = "".join(x for x in "rwxu" if any(x in c.permissions for c in here if c.rank == rank))
        last = mappings[-1] if mappings else None
        if last and last.address + last.size == start and last.permissions == permissions and last.name == names[0]:
            mappings[-1] = last.replace(size=last.size + stop - start)
        else:
            mappings.append(Mapping(names[0], start, stop - start, permissions))
    total = sum(mapping.size for mapping in mappings if mapping.permissions)
    if total > MOST:
        message = f"{total >> 20} MiB are declared, {MOST >> 20} can be judged: declare what tables and stacks need"
        raise tables.source.mistake(("memory",), message)
    return mappings


def _filled(mapping: Mapping, placed: list[tuple[int, bytes]]) -> Mapping:
    """An area with the tables that lie in it."""
    data = bytearray()
    for at, table in placed:
        start, stop = max(at, mapping.address), min(at + len(table), mapping.address + mapping.size)
        if start < stop and mapping.permissions:
            data.extend(bytes(max(0, stop - mapping.address - len(data))))
            data[start - mapping.address : stop - mapping.address] = table[start - at : stop - at]
    return mapping.replace(data=bytes(data))


# Symbols without addresses


def _made_up(tables: CompiledTables, find: Lookup) -> dict[str, int]:
    """Addresses for the symbols that have none, far enough apart for what is declared around each."""
    reach: dict[str, tuple[int, int]] = {}

    def note(symbol: str | None, low: int, high: int) -> None:
        if symbol is not None:
            before = reach.get(symbol, (0, 1))
            reach[symbol] = min(before[0], low), max(before[1], high)

    for address in tables.addresses:
        note(address.symbol, min(address.offset, 0), max(address.offset, 1))
    for table in tables.all:
        note(table.place.symbol, 0, table.size)
    for stack in tables.stacks:
        offset = stack.top.offset
        note(stack.top.symbol, offset - (stack.size or PAGE) - (stack.guard or PAGE), offset)
    made_up, free = {}, MADE_UP
    for symbol, (low, high) in reach.items():
        try:
            find(symbol)
        except NotThere:
            low, high = low & -PAGE, high + PAGE - 1 & -PAGE
            made_up[symbol] = free - low
            free += high - low + PAGE
    for region in tables.regions:  # a region between two symbols, the second of which has no place of its own
        if region.stop.symbol in made_up and region.start.symbol != region.stop.symbol:
            made_up[region.stop.symbol] = (region.start.at(lambda name: made_up.get(name) or find(name))) + PAGE
    return made_up
