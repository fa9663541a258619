"""Image formats: each module here recognises one by content and reads it; `open_image` puts the Machines together.

A reader is a module with `matches(data) -> bool` and `read(path, data, options) -> Contents`; its place in FORMATS says
when it is asked.
"""

from __future__ import annotations

import sys

from .. import budgets
from ..elf import is_elf
from ..errors import ImageError, NotThere, UsageError
from ..machine.files import load
from ..machine.image import OpenOptions, Snapshot
from ..machine.machine import Machine
from ..machine.memory import Memory
from ..machine.registers import PG, Registers, Segment, TableRegister
from ..machine.symbols import MASK, Symbols, parse_map
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..machine.files import Data

FORMATS = ("elfcore", "elf", "kdump", "lime", "migration", "vmware", "crashdump", "raw")
LEAST = 16  # bytes of a table: a symbol of less is a pointer to one


class Contents(Record):
    """What a reader found in a file: memory, one set of registers a CPU, and what goes with them.

    `extra` holds what a note of ours says beside the registers: vendor, maxphyaddr, tables at physical addresses, what
    was found without a register.
    `long_mode` is whether the file says that CPU 0 is in long mode; None where it does not tell. `running` is whether
    this is the memory of a machine, in which tables that no register names can be looked for; `lacks` is then why they
    have to be.
    """

    memory: Memory
    registers: tuple[Registers, ...] = ()
    symbols: Symbols = Symbols()
    remarks: tuple[str, ...] = ()
    notes: bytes = b""
    extra: dict[str, str] = {}  # noqa: RUF012 - never changed
    long_mode: bool | None = None
    running: bool = True
    lacks: str = "this image does not say where its tables are"


def _reader(name: str) -> Any:
    __import__(f"{__name__}.{name}")
    return sys.modules[f"{__name__}.{name}"]


def _format(path: str, data: Data) -> str:
    """The format of a file by its content; ImageError when it is of a kind that cannot be read."""
    name = next(name for name in FORMATS if _reader(name).matches(data))
    if name == "raw":  # which takes anything
        _reader("foreign").refuse(path, data)
    return name


def _contents(path: str, options: OpenOptions) -> tuple[Contents, str]:
    """What a file holds, and its format."""
    data = load(path)
    if options.format is not None and options.format not in FORMATS:
        raise UsageError(f"--image-format {options.format}: one of {', '.join(FORMATS)}")
    name = options.format or _format(path, data)
    contents: Contents = _reader(name).read(path, data, options)
    return contents, name


def memory_of(path: str, format: str | None = None, base: int | None = None) -> tuple[Memory, str]:
    """Just the memory in an image of any format, and the format."""
    contents, name = _contents(path, OpenOptions(format=format, base=base))
    return contents.memory, name


def open_image(
    path: str,
    options: OpenOptions = OpenOptions(),  # noqa: B008 - an immutable value
    given: tuple[Contents, str] | None = None,
) -> Snapshot:
    """Read an image of any format, or what is `given` with the name of its format. ImageError says in one sentence what
    cannot be read, and why."""
    contents, name = _contents(path, options) if given is None else given
    memory = contents.memory
    for file, place in options.maps:
        above = load(file)
        if place + len(above) > 1 << 64:
            raise UsageError(f"--map {file}@{place:#x}: its {len(above):#x} bytes reach beyond 64 bits")
        memory.overlay(place, above)
    if options.memory is not None:
        memory = options.memory(memory)
    symbols = contents.symbols
    if options.symbols is not None:
        symbols = read_symbols(options.symbols)
    if options.kaslr_offset is not None:
        symbols = symbols.moved(options.kaslr_offset)
    registers = options.registers or contents.registers or (Registers(),)
    vendor = options.vendor or contents.extra.get("vendor")
    bits = options.maxphyaddr or (int(contents.extra["maxphyaddr"]) if "maxphyaddr" in contents.extra else None)
    memory.ram = ram(contents.extra.get("ram", ""))
    machines, remarks = [], list(contents.remarks)
    sets = [_merged(loaded, options, symbols) for loaded in registers]
    extra = contents.extra
    assumed: list[tuple[str, ...]] = [()] * len(sets)
    if contents.running and _lacking(contents, options, [merged for merged, _ in sets]):
        from . import searched

        # what the search reads is not what a small image needs
        known = [merged for merged, _ in sets]
        counted = bool(contents.registers)
        found = searched.search(path, contents.memory, known, contents.lacks, options.progress, counted)
        remarks += found.remarks
        extra = extra | found.extra
        sets = [(merged, frozenset()) for merged in found.registers]
        assumed = [*found.assumed]
    elif "found" in extra:
        from . import searched

        assumed = [searched.repeated(extra["found"], merged) for merged, _ in sets]
    if extra.get("cr3") == "vmcoreinfo" and "cr3" not in options.changes and not options.registers:
        assumed = [("CR3 (the kernel's own page tables, which VMCOREINFO names)", *said) for said in assumed]
    for cpu, (merged, physical) in enumerate(sets):
        physical |= set(contents.extra.get("physical", "").split(","))
        core = None if cpu else contents.long_mode
        machine = Machine(
            merged,
            memory,
            cpu=cpu,
            vendor=vendor,
            maxphyaddr=bits,
            physical=physical,
            core=core,
            assumed=assumed[cpu],
            five_level=extra.get("levels") == "5",
        )
        if options.registers and (bases := machine.descriptor_bases()):
            machine = machine.replace(merged.replace(**bases), assumed=_assumed(machine, bases))
        machines.append(machine)
    if options.symbols is not None:
        symbols, moved = _placed(symbols, machines) if options.kaslr_offset is None else (symbols, [])
        remarks += moved or _unfitting(symbols, machines, options.kaslr_offset)
    if stacks := symbols.objects:
        machines = [machine.replace(stacks=stacks, assumed=machine.assumed) for machine in machines]
    said = tuple(remarks)
    return Snapshot(path, name, memory, tuple(machines), symbols, said, contents.notes, extra, contents.remarks)


def _lacking(contents: Contents, options: OpenOptions, registers: list[Registers]) -> bool:
    """Whether tables are to be looked for: some CPU's registers name none, and no option does."""
    if options.registers or options.gdt or options.idt or options.tss or "unknown" in contents.extra:
        return False
    return any(None in (r.cr3, r.gdtr, r.idtr, r.tr) and (r.cr0 is None or r.cr0 & PG) for r in registers)


def _assumed(machine: Machine, bases: dict[str, Segment]) -> tuple[str, ...]:
    """What is assumed of a machine from a text whose bases of TR and LDTR are those of their descriptors."""
    said = [f"{name.upper()} base {s.base:#x} (bits 63:32 as its descriptor has them)" for name, s in bases.items()]
    return (*said, *machine.assumed)


def _merged(registers: Registers, options: OpenOptions, symbols: Symbols) -> tuple[Registers, frozenset[str]]:
    """The registers with what the command line says of them, and the tables whose addresses are physical."""
    changes: dict[str, Any] = {}
    for name, value in options.changes.items():
        if name not in Registers._names or name in ("gdtr", "idtr", "tr", "ldtr", "general"):  # type: ignore[attr-defined]
            raise UsageError(f"--reg {name}: not a register of x86tables (rip, rsp, cs, cr0, cr3, efer, star, ...)")
        segment = name in ("cs", "ss", "ds", "es", "fs", "gs")
        bits = 16 if segment else 64
        if not 0 <= value < 1 << bits:
            raise UsageError(f"--reg {name}={value:#x}: {bits} bits hold 0..{(1 << bits) - 1:#x}")
        changes[name] = (getattr(registers, name) or Segment(0)).replace(selector=value) if segment else value
    physical = set()
    for name, default in (("gdt", 0xFFFF), ("idt", 0xFFF), ("tss", 0x67)):
        spec = getattr(options, name)
        if spec is None:
            continue
        place, comma, size = spec.partition(",")
        if place.startswith("phys:"):
            place = place[5:]
            physical.add(name)
        base, limit = address(place, symbols, f"--{name}"), default
        if comma:
            limit = number(size, f"--{name}", 0xFFFFFFFF)
        elif name != "tss" and LEAST <= (known := _size(place, symbols)) <= default + 1:
            limit = known - 1
        if name == "tss":
            changes["tr"] = Segment(registers.tr.selector if registers.tr else 0xFFF8, base, limit)
        else:
            changes[name + "r"] = TableRegister(base, limit)
    return registers.replace(**changes), frozenset(physical)


def _size(place: str, symbols: Symbols) -> int:
    """The size of the symbol that an address on the command line names; 0 for a number, and where nothing tells."""
    return 0 if place[:1].isdecimal() else symbols.size(place)


def address(text: str, symbols: Symbols, where: str = "") -> int:
    """An address as the command line gives it: `0x...`, decimal, a symbol, or `symbol+0x10`."""
    if text[:1].isdecimal():
        return number(text, where)
    name, offset = text, 0
    at = max(text.rfind("+"), text.rfind("-"))
    if at > 0 and text[at + 1 : at + 2].isdecimal() and not symbols.has(text):
        offset = number(text[at + 1 :], where)
        name, offset = text[:at], offset if text[at] == "+" else -offset
    try:
        return symbols.address(name) + offset & MASK
    except NotThere as error:
        known = "" if symbols else " (the image has no symbols: give --symbols)"
        prefix = f"{where}: " if where else ""
        kinds = "an address is 0x..., decimal, a symbol, or symbol+0x10"
        raise UsageError(f"{prefix}{text!r}: {kinds}; {error}{known}") from None


def number(text: str, where: str = "", most: int = (1 << 64) - 1) -> int:
    """A number as the command line writes it, `0x...` or decimal, from 0 to `most`; `where` is the option."""
    prefix = f"{where}: " if where else ""
    shown = repr(text if len(text) < 40 else f"{text[:40]}...")
    try:
        if not (text.isascii() and text.isalnum()):  # int() takes more: blanks, signs, underscores, other digits
            raise ValueError
        value = int(text, 16) if text[:2].lower() == "0x" else int(text, 10)
    except ValueError:
        raise UsageError(f"{prefix}{shown} is not a number: 0x... or decimal expected") from None
    if value > most:
        raise UsageError(f"{prefix}{shown} is too large: at most {most:#x}")
    return value


def ram(text: str) -> tuple[range, ...]:
    """Ranges of memory as a note of ours names them: `0x0-0xa0000,0x100000-0x8000000`; what is damaged is left out."""
    found = []
    for part in text.split(",")[: budgets.RANGES]:
        start, _, stop = part.partition("-")
        try:
            found.append(range(int(start, 16), int(stop, 16)))
        except ValueError:
            continue
    return tuple(found)


def read_registers(path: str) -> tuple[Registers, ...]:
    """The registers of each CPU in a text: QEMU's `info registers -a`, a `-d cpu_reset` block, or a regs.json."""
    from . import monitor, snapshot

    content = load(path)
    if len(content) > budgets.REGISTER_TEXT:
        raise UsageError(
            f"--registers {path}: more than {budgets.REGISTER_TEXT:#x} bytes: give only the block that matters"
        )
    text = content[:].decode("utf-8", "replace")
    return snapshot.parse(text, path) if text.lstrip()[:1] == "{" else monitor.parse(text, path)


def read_symbols(path: str) -> Symbols:
    """Symbols of an ELF file, a System.map or the output of `nm`; ImageError when there are none."""
    data = load(path)
    if not is_elf(data):
        return parse_map(data, path)
    symbols: Symbols = _reader("elf").symbol_table(path, data)
    if not symbols:
        raise ImageError(f"{path}: this ELF file has no symbols: give the kernel before it was stripped, or its map")
    return symbols


def _placed(symbols: Symbols, machines: list[Machine]) -> tuple[Symbols, list[str]]:
    """The symbols where the gates say the kernel is, when only one offset fits; and a remark when it is not 0."""
    for machine in machines:
        if not machine.wide:
            continue
        try:
            gates = list(machine.idt)[:22]
        except NotThere:
            continue
        offset = symbols.offset_for(gate.offset for gate in gates if gate.p)
        if offset:
            return symbols.moved(offset), [f"the kernel was moved by {offset:#x}: the one offset that fits its gates"]
        if offset == 0:
            break
    return symbols, []


def _unfitting(symbols: Symbols, machines: list[Machine], offset: int | None) -> list[str]:
    """A remark when there are gates and none of their handlers has a name; `offset` is --kaslr-offset."""
    gates: list[Any] = []
    for machine in machines:
        try:
            gates += machine.gates if machine.wide or machine.mode == "protected32" else []
        except NotThere:
            continue
    handlers = {gate.offset for gate in gates if gate.p}
    if not handlers or any(map(symbols.name, handlers)):
        return []
    how = "no offset of these symbols fits" if offset is None else f"these symbols moved by {offset:#x} do not fit"
    return [f"{how} the gates: they name no handler; are they from another kernel?"]
