"""From a configuration to tables: intentions become fields, names numbers, ranges of vectors gates."""

from __future__ import annotations

from difflib import get_close_matches

from ..checks import selection
from ..errors import UsageError
from ..machine.memory import PAGE
from ..tables import vectors
from ..tables.gdt import Gdt, SegmentDescriptor, SystemDescriptor
from ..tables.idt import Gate
from ..tables.layout import Layout
from ..tables.pseudo import PseudoDescriptor
from ..tables.selector import Selector, Star
from ..tables.tss import STACKS, Tss
from . import keys
from .compiled import Address, CompiledStack, CompiledTable, CompiledTables, Item, MemoryRange, VectorHandler
from .cpus import DeclaredCpu, expand
from .lines import quoted
from .scalars import Scalars

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from .lines import Path
    from .read import Source

    Entry: TypeAlias = tuple[str, Layout, dict[str, Address], Path]  # what becomes an Item

SEGMENTS: dict[str, Callable[[], SegmentDescriptor]] = {
    "null": SegmentDescriptor,
    "kernel_code": SegmentDescriptor.kernel_code,
    "kernel_data": SegmentDescriptor.kernel_data,
    "user_code": SegmentDescriptor.user_code,
    "user_data": SegmentDescriptor.user_data,
    "code32": SegmentDescriptor.code32,
    "user_code32": lambda: SegmentDescriptor.code32(3),
}
SLOTS = ("stack", *STACKS)

MOST = 40  # characters of a name or a number that is looked at


def compile_config(config: keys.Config, source: Source) -> CompiledTables:
    """The tables of a configuration. UsageError names the key that is wrong, and what is expected."""
    return _Compiler(config, source).tables()


class _Compiler:
    def __init__(self, config: keys.Config, source: Source) -> None:
        self.config, self.source, self.wrong = config, source, source.mistake
        self.scalars = Scalars(source)
        self.cpus = expand(config, source)
        self.selectors: dict[str, int] = {}
        self.segments: dict[str, SegmentDescriptor] = {}
        self.constants: dict[str, str] = {}

    def tables(self) -> CompiledTables:
        """All of it."""
        places = self.config.tables
        tss = tuple(map(self._tss, self.cpus))
        gdt = self._table("gdt", places.gdt, ("tables", "gdt"), self._gdt(tss))
        stacks = tuple(stack for cpu in self.cpus for stack in self._stacks(cpu))
        self.ists = self._ists(stacks)
        gates = self._gates()
        handlers = tuple(VectorHandler(v, address, gate.stub) for v, (gate, _, address, _) in sorted(gates.items()))
        count = self.config.tables.gates
        empty = Gate()
        values: list[Entry] = [
            (vectors.label(v), gates[v][1], {"offset": gates[v][2]}, gates[v][3])
            if v in gates
            else (vectors.label(v), empty, {}, ("idt",))
            for v in range(count)
        ]
        idt = self._table("idt", places.idt, ("tables", "idt"), values)
        gdtr, idtr = (
            self._table(
                f"{table.kind}r",
                place,
                ("tables", f"{table.kind}r"),
                [(f"{table.kind}r", PseudoDescriptor(limit=table.size - 1), {"base": table.place}, ())],
            )
            for table, place in ((gdt, places.gdtr), (idt, places.idtr))
        )
        made = CompiledTables(
            gdt=gdt,
            idt=idt,
            tss=tss,
            gdtr=gdtr,
            idtr=idtr,
            code=self._code(None, ()),
            data=next((self.selectors[n] for n, s in self.segments.items() if s.kind == "data" and not s.dpl), 0),
            selectors=self.selectors,
            ists=self.ists,
            star=self._star(),
            stacks=stacks,
            memory=tuple(self._memory()),
            handlers=handlers,
            known=dict(self._symbols()),
            config=self.config,
            source=self.source,
        )
        self._once(made)
        for key in ("common", "load"):
            self.scalars.name(getattr(self.config.stubs, key), ("stubs", key))
        for key in ("select", "ignore"):
            for number, prefix in enumerate(getattr(self.config.check, key)):
                try:
                    selection.select([prefix], [])
                except UsageError as error:
                    raise self.wrong(("check", key, number), str(error)) from None
        return made

    def _table(
        self,
        kind: str,
        place: int | str,
        path: Path,
        values: Sequence[Entry],
        number: str = "",
    ) -> CompiledTable:
        address = self.scalars.place(place, path)
        items, offset = [], 0
        for name, value, addresses, written in values:
            items.append(Item(offset, name, value, addresses, written))
            offset += value.size
        return CompiledTable(kind, address.symbol or kind + number, address, tuple(items))

    def _once(self, made: CompiledTables) -> None:
        """Refuse two tables of one name."""
        seen: set[str] = set()
        for table in (made.gdt, made.idt, made.gdtr, made.idtr, *made.tss):
            if table.name in seen:
                tss = table.kind == "tss"
                path: Path = (*table.items[0].path, "tss") if tss else ("tables", table.kind)
                cure = "; {cpu} in the name is the number of the CPU" if tss and len(made.tss) > 1 else ""
                raise self.wrong(path, f"two tables are called {table.name}{cure}")
            seen.add(table.name)

    def _constant(self, name: str, of: str, path: Path) -> None:
        """Refuse two names that differ in their case alone: sources have them in upper case."""
        constant = f"{name.upper()}_{of}"
        if (other := self.constants.setdefault(constant, name)) != name:
            raise self.wrong(path, f"{name!r} and {other!r} make one constant, {constant}")

    def _known(self, name: str, names: list[str], what: str) -> str:
        near = get_close_matches(name[:MOST], names, 1, 0.5)
        return f"no {what} {quoted(name)}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}")

    # GDT

    def _gdt(self, tss: tuple[CompiledTable, ...]) -> list[Entry]:
        segments = list(self.config.gdt.segments)
        if "tss" not in segments and not any(isinstance(s, keys.SegmentConfig) and s.kind == "tss" for s in segments):
            segments.append("tss")
        gdt = Gdt()
        values: list[Entry] = [("null", SegmentDescriptor(), {}, ("gdt",))]
        found: list[tuple[str, SegmentDescriptor | SystemDescriptor, dict[str, Address], Path]] = []
        for number, segment in enumerate(segments):
            path: Path = ("gdt", "segments", number)
            if segment == "tss" or (isinstance(segment, keys.SegmentConfig) and segment.kind == "tss"):
                for cpu, table in enumerate(tss):
                    name = "tss" if len(tss) == 1 else f"tss{cpu}"
                    found.append((name, SystemDescriptor.tss(0, table.size - 1), {"base": table.place}, path))
            else:
                found.append((*self._segment(segment, path), {}, path))
        for name, descriptor, addresses, path in found:
            try:
                selector = gdt.append(descriptor)
            except UsageError as error:
                raise self.wrong(path, str(error)) from None
            values.append((name, descriptor, addresses, path))
            if name == "null":
                continue
            if name in self.selectors:
                raise self.wrong(path, f'{name!r} is there already: give this one a name, {{name = "...", kind = ...}}')
            self.selectors[self.scalars.name(name, path)] = int(selector)
            self._constant(name, "SELECTOR", path)
            if isinstance(descriptor, SegmentDescriptor):
                self.segments[name] = descriptor
        return values

    def _segment(self, segment: str | keys.SegmentConfig, path: Path) -> tuple[str, SegmentDescriptor]:
        if isinstance(segment, str):
            return segment, SEGMENTS[segment]()
        name = segment.name or segment.kind
        if name is None:
            raise self.wrong(path, "a segment of raw fields needs a name")
        raw = {f.name: getattr(segment, f.name) for f in SegmentDescriptor.fields}
        raw = {field: value for field, value in raw.items() if value is not None}
        try:
            descriptor = SEGMENTS[segment.kind]() if segment.kind else SegmentDescriptor()
            return name, descriptor.replace(**raw)
        except UsageError as error:
            raise self.wrong((*path, next(f for f in raw if str(error).startswith(f + "="))), str(error)) from None

    # TSS

    def _tss(self, cpu: DeclaredCpu) -> CompiledTable:
        suffix = str(cpu.number) if len(self.cpus) > 1 else ""
        stacks = {slot: getattr(cpu.written, slot) for slot in SLOTS[1:]}
        addresses = {
            slot: self._top(stack, cpu, (*cpu.path, slot))[0] for slot, stack in stacks.items() if stack is not None
        }
        place = cpu.named(cpu.written.tss) if cpu.written.tss is not None else f"tss{suffix}"
        return self._table("tss", place, (*cpu.path, "tss"), [("tss" + suffix, Tss(), addresses, cpu.path)], suffix)

    def _top(self, stack: keys.StackConfig, cpu: DeclaredCpu, path: Path) -> tuple[Address, Address | None, int | None]:
        """Top, bottom and size of a stack."""
        if stack.top is not None and stack.bottom is None and stack.size is None:
            if stack.guard is not None:
                raise self.wrong(
                    (*path, "guard"), "a guard lies below the bottom: {bottom = SYMBOL, size = N} expected"
                )
            return cpu.address(stack.top, self.scalars, (*path, "top")), None, None
        if stack.top is not None or stack.bottom is None or stack.size is None:
            given = " and ".join(n for n in ("bottom", "size", "top") if getattr(stack, n) is not None) or "neither"
            raise self.wrong(path, f"{keys.StackConfig.shape.partition(':')[0]} expected, {given} found")
        size = self.scalars.size(stack.size, (*path, "size"))
        bottom = cpu.address(stack.bottom, self.scalars, (*path, "bottom"))
        return bottom.plus(size), bottom, size

    def _stacks(self, cpu: DeclaredCpu) -> Iterator[CompiledStack]:
        names: list[str] = []
        for slot in SLOTS:
            stack: keys.StackConfig | None = getattr(cpu.written, slot)
            if stack is None:
                continue
            name = self.scalars.name(stack.name or slot, (*cpu.path, slot, "name"))
            if name in names:
                raise self.wrong((*cpu.path, slot, "name"), f"another stack of this CPU is called {name!r}")
            names.append(name)
            top, bottom, size = self._top(stack, cpu, (*cpu.path, slot))
            guard = 0 if stack.guard is None else self.scalars.size(stack.guard, (*cpu.path, slot, "guard"))
            if guard % PAGE:
                message = f"{guard:,} bytes: a guard is whole pages, a multiple of {PAGE:,}"
                raise self.wrong((*cpu.path, slot, "guard"), message)
            yield CompiledStack(cpu.number, slot, name, top, bottom, size, guard, (*cpu.path, slot))

    def _ists(self, stacks: tuple[CompiledStack, ...]) -> dict[str, int]:
        """IST numbers by name; a gate is the same for every CPU, so that a name is the same slot in each TSS."""
        found: dict[str, int] = {}
        for stack in stacks:
            if stack.slot.startswith("ist"):
                number = int(stack.slot[3:])
                self._constant(stack.name, "IST", stack.path)
                if found.setdefault(stack.name, number) != number:
                    raise self.wrong(stack.path, f"{stack.name!r} is IST{found[stack.name]} of another CPU")
        return found

    def _ist(self, name: str, path: Path) -> int:
        if name not in self.ists:
            there = ", ".join(f'"{known}" (IST{number})' for known, number in self.ists.items())
            raise self.wrong(path, f'no stack named "{name}"; the TSS has {there or "no IST stack"}')
        for cpu in self.cpus:
            if getattr(cpu.written, f"ist{self.ists[name]}") is None:
                raise self.wrong(
                    path, f'the TSS of CPU {cpu.number} has no stack named "{name}" (IST{self.ists[name]})'
                )
        return self.ists[name]

    # IDT

    def _vectors(self, key: str) -> range:
        path: Path = ("idt", key)
        first, dots, last = key.partition("..")
        try:
            ends = [_vector(end) for end in (first, last or first)]
        except (UsageError, ValueError) as error:
            reason = str(error) if "0..255" in str(error) else f"{quoted(key)} is not a vector"
            near = get_close_matches(f"#{key[:MOST]}".replace("##", "#").upper(), vectors.BY_MNEMONIC, 1, 0.6)
            cure = f'did you mean "{near[0]}"?' if near else '"8", "#DF" or "32..47" expected'
            raise self.wrong(path, f"{reason}; {cure}") from None
        if ends[0] > ends[1] or (dots and not last):
            raise self.wrong(path, 'a range ascends, both ends included: "32..47"')
        if ends[1] >= self.config.tables.gates:
            raise self.wrong(path, f"the IDT has {self.config.tables.gates} gates (tables.gates): 0..{ends[1]} needed")
        return range(ends[0], ends[1] + 1)

    def _gates(self) -> dict[int, tuple[keys.GateConfig, Gate, Address, Path]]:
        """Vector -> what was written, the gate without its address, the address, the key."""
        found: dict[int, tuple[keys.GateConfig, Gate, Address, Path]] = {}
        owner: dict[int, tuple[str, bool]] = {}
        calls = self._system_calls()
        for key, written in self.config.idt.items():
            gate = written if isinstance(written, keys.GateConfig) else keys.GateConfig(handler=written)
            covered = self._vectors(key)
            single = ".." not in key
            for vector in covered:
                before, narrow = owner.get(vector, ("", False))
                if before and narrow == single:
                    raise self.wrong(("idt", key), f"vector {vector} is in {before!r} already")
                if before and narrow:
                    continue
                owner[vector] = key, single
                path: Path = ("idt", key, "handler") if isinstance(written, keys.GateConfig) else ("idt", key)
                address = self._handler(gate.handler, vector, covered, path)
                found[vector] = gate, self._gate(gate, vector, vector in calls, ("idt", key)), address, ("idt", key)
        for number, vector in enumerate(calls):
            if vector not in found:
                raise self.wrong(("syscall", "vectors", number), f"vector {vector} has no gate in [idt]")
        return found

    def _system_calls(self) -> list[int]:
        written = self.config.syscall.vectors if self.config.syscall else []
        found = []
        for number, vector in enumerate(written):
            try:
                found.append(_vector(vector))
            except (UsageError, ValueError) as error:
                raise self.wrong(("syscall", "vectors", number), f"{quoted(vector)} is not a vector: {error}") from None
        return found

    def _handler(self, handler: int | str | keys.Strided, vector: int, covered: range, path: Path) -> Address:
        if isinstance(handler, keys.Strided):
            return self.scalars.address(handler.base, (*path, "base")).plus((vector - covered.start) * handler.stride)
        if isinstance(handler, str):
            return self.scalars.address(handler.replace("{vector}", str(vector)), path)
        return self.scalars.address(handler, path)

    def _gate(self, gate: keys.GateConfig, vector: int, call: bool, path: Path) -> Gate:
        if call and gate.dpl not in (None, 3):
            raise self.wrong((*path, "dpl"), f"vector {vector} is a system call (syscall.vectors): its DPL is 3")
        make = Gate.trap if gate.type == "trap" else Gate.interrupt
        ist = 0 if gate.ist is None else self._ist(gate.ist, (*path, "ist"))
        dpl = 3 if call else gate.dpl or 0
        return make(0, self._code(gate.segment, (*path, "segment")), ist=ist, dpl=dpl)

    def _code(self, name: str | None, path: Path) -> int:
        """The selector of a code segment, without RPL."""
        if name is None:
            ring0 = [n for n, s in self.segments.items() if s.kind == "code64" and s.dpl == 0]
            if not ring0:
                raise self.wrong(("gdt", "segments"), "no kernel_code: gates need a 64-bit code segment of ring 0")
            name = ring0[0]
        if name not in self.segments:
            raise self.wrong(path, self._known(name, list(self.segments), "segment"))
        return int(Selector.from_int(self.selectors[name]).replace(rpl=0))

    # The rest

    def _star(self) -> int | None:
        """STAR of the two code segments; that of SYSRET lies 16 above what it holds."""
        call = self.config.syscall
        if call is None or (call.kernel is None and call.user is None):
            return None
        if call.kernel is None or call.user is None:
            missing = "kernel" if call.kernel is None else "user"
            raise self.wrong(("syscall",), f"STAR needs both segments: {missing} is missing")
        kernel = self._code(call.kernel, ("syscall", "kernel"))
        user = self._code(call.user, ("syscall", "user")) - 16
        if user < 8:
            raise self.wrong(("syscall", "user"), f"{call.user!r} needs user_data before it, and a slot before that")
        return int(Star(user=user | 3, kernel=kernel))

    def _memory(self) -> Iterator[MemoryRange]:
        for number, region in enumerate(self.config.memory):
            path: Path = ("memory", number)
            start = self.scalars.address(region.start, (*path, "start"))
            if (region.end is None) == (region.size is None):
                raise self.wrong(path, "either end or size expected")
            if region.end is not None:
                stop = self.scalars.address(region.end, (*path, "end"))
            else:
                stop = start.plus(self.scalars.size(region.size or 0, (*path, "size")))
            yield MemoryRange(region.name or str(start), start, stop, region.permissions, path)

    def _symbols(self) -> Iterator[tuple[str, int]]:
        for name, value in self.config.symbols.items():
            address = self.scalars.address(value, ("symbols", name))
            if address.symbol is not None:
                raise self.wrong(("symbols", name), f"{quoted(value)} is not a number: the address of {name} expected")
            yield name, address.offset


def _vector(written: int | str) -> int:
    """A number, a number as text, or a mnemonic. UsageError or ValueError when it is none of them."""
    if isinstance(written, str):
        if len(written) > MOST:
            raise ValueError(f"{len(written):,} characters")
        if written[:1].isdecimal():
            written = int(written, 0)
    return vectors.number(written)
