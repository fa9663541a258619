"""Machine: one logical CPU as loaded, registers and memory, with its tables decoded."""

from __future__ import annotations

from bisect import bisect
from functools import cached_property

from ..errors import NotThere
from ..records import Record
from ..tables.gdt import TSS16, TSS_AVAILABLE, TSS_BUSY, Gdt, LegacySystemDescriptor, SystemDescriptor
from ..tables.idt import Gate, Idt
from ..tables.legacy import LegacyGate, Tss16, Tss32, VectorTable, holds_legacy_gates
from ..tables.selector import Star
from ..tables.tss import IoMap, Tss
from .long_mode import infer, trial
from .memory import PAGE
from .paging import NX, READ, AddressSpace, Paging, root
from .probe import Inaccessible, Ok, Unknown, unbacked
from .registers import CET, LA57, LMA, NXE, PAE, PE, PG, PSE, SMAP, SMEP, WP, Registers, Segment, TableRegister

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..tables.layout import Field
    from .coverage import Coverage
    from .memory import Memory
    from .paging import Access
    from .probe import PageEntry, Probe


class Gap(Record):
    """Bytes `start` to `stop` of a table that cannot be read, and why."""

    start: int
    stop: int
    why: str


class Table(Record):
    """The bytes of a table as far as they can be read; gaps are zeros in `data` and listed in `gaps`."""

    name: str
    base: int
    limit: int
    data: bytes
    gaps: tuple[Gap, ...] = ()

    @property
    def error(self) -> str | None:
        """Why nothing of the table can be read; None when something can."""
        missing = sum(gap.stop - gap.start for gap in self.gaps)
        return str(self.gaps[0].why) if missing and missing == len(self.data) else None

    def has(self, field: Field) -> bool:
        """Whether all of a layout's field could be read, the structure standing where the table begins."""
        return self.known(field.offset, field.offset + field.width // 8)

    def known(self, start: int, stop: int) -> bool:
        """Whether all bytes from `start` to before `stop` could be read."""
        return stop <= len(self.data) and not any(gap.start < stop and start < gap.stop for gap in self.gaps)


class Machine:
    """One logical CPU as loaded: registers and memory, and its tables decoded through its page tables.

    `stacks` are the ranges of linear memory, in order, that a stack in one of them does not leave.
    `assumed` lists what the image does not say and was inferred, each as a short text. `physical` names the tables
    whose base is a physical address. `core` is what a core's headers say of EFER.LMA; `mode_needs` is the missing input
    where nothing decides the mode. `five_level` is what is taken for CR4.LA57 where CR4 is not known. A Machine never
    changes.
    """

    def __init__(
        self,
        registers: Registers,
        memory: Memory,
        *,
        cpu: int = 0,
        vendor: str | None = None,
        maxphyaddr: int | None = None,
        declared: Coverage | None = None,
        stacks: tuple[range, ...] = (),
        physical: frozenset[str] = frozenset(),
        assumed: tuple[str, ...] = (),
        core: bool | None = None,
        five_level: bool = False,
    ) -> None:
        self.registers, self.memory, self.cpu, self.declared = registers, memory, cpu, declared
        self.stacks = stacks
        self.physical = physical
        self.vendor, self.maxphyaddr = vendor or "intel", maxphyaddr or 52
        self._assumed = list(assumed)
        self._tables: dict[str, Table] = {}
        self._core, self._five_level = core, five_level
        self.mode_needs: str | None = None
        self.long_mode = self._long_mode(core)
        self.mode = self._mode()
        self.nxe = self._nxe()
        self.space = AddressSpace(memory, self._paging(self.nxe), declared)
        if self.space.paging.mode in ("4-level", "5-level"):
            if vendor is None:
                self._assumed.append("vendor intel")
            if maxphyaddr is None:
                self._assumed.append("MAXPHYADDR 52")
        if self.long_mode and registers.efer is None and registers.syscall:
            self._assumed.append("EFER.SCE=1 (STAR names segments)")
        if (registers.cr4 or 0) & CET:
            self._assumed.append("supervisor shadow stacks off (only CR4.CET is known)")

    def replace(self, registers: Registers | None = None, memory: Memory | None = None, **options: Any) -> Machine:
        """This machine with other registers, memory or options (`vendor`, `maxphyaddr`, `declared`)."""
        chosen = {"vendor": self.vendor, "maxphyaddr": self.maxphyaddr, "declared": self.declared, **options}
        chosen.setdefault("core", self._core)
        chosen.setdefault("stacks", self.stacks)
        chosen.setdefault("five_level", self._five_level)
        return Machine(
            registers or self.registers, memory or self.memory, cpu=self.cpu, physical=self.physical, **chosen
        )

    @property
    def assumed(self) -> tuple[str, ...]:
        """What was inferred, each as a short text."""
        return tuple(dict.fromkeys(self._assumed))

    # What the registers say of the mode

    def _long_mode(self, core: bool | None) -> bool:
        """EFER.LMA; inferred where EFER is not known."""
        r = self.registers
        if r.efer is not None:
            return r.efer & LMA != 0
        found = infer(r, self.memory, self.declared, core)
        if found.assumed is not None:
            self._assumed.append(found.assumed)
        self.mode_needs = found.needs
        return found.active

    def _mode(self) -> str:
        """`long64`, `compat`, `protected32`, `protected16`, `virtual8086` or `real`."""
        r = self.registers
        if r.cr0 is not None and not r.cr0 & PE:
            return "real"
        code = r.cs.descriptor if r.cs is not None else None
        if self.long_mode:
            return "long64" if code is None or code.l or r.cr0 is None else "compat"
        if r.virtual8086:
            return "virtual8086"
        return "protected32" if code is None or code.d_b else "protected16"

    def _nxe(self) -> bool:
        """EFER.NXE, taken as set where EFER is not known.

        A present entry with bit 63 on the walks to the tables shows it, but firmware has such entries elsewhere;
        without any, NXE decides nothing but bit I/D of the error code of a fetch.
        """
        r = self.registers
        self.nxe_known = True
        if r.efer is not None:
            return r.efer & NXE != 0
        if not (self.long_mode or (r.cr4 or 0) & PAE) or r.cr3 is None:
            return False
        space = trial(r, self.memory, self._paging_mode(), self.declared)
        seen: list[PageEntry] = []
        tables = [table.base for table in (r.gdtr, r.idtr, r.tr) if table is not None]
        for address in tables + [address for address in (r.rsp, r.rip) if address is not None]:
            try:
                space.walk(address, seen.append)
            except Inaccessible:
                continue
        for entry in seen:
            if entry.value & NX and entry.value & 1:
                self._assumed.append(f"EFER.NXE=1 (the {entry.name} at {entry.address:#x} has bit 63)")
                return True
        self._assumed.append("EFER.NXE=1 (no entry on the walks to the tables decides it)")
        self.nxe_known = False
        return True

    def _paging_mode(self) -> str:
        r = self.registers
        if r.cr3 is None and r.cr0 is None:
            return "flat"
        if r.cr0 is not None and not r.cr0 & PG:
            return "none"
        if self.long_mode:
            return "5-level" if (self._five_level if r.cr4 is None else r.cr4 & LA57) else "4-level"
        return "PAE" if (r.cr4 or 0) & PAE else "32-bit"

    def _paging(self, nxe: bool) -> Paging:
        r, mode = self.registers, self._paging_mode()
        cr0, cr4 = r.cr0 if r.cr0 is not None else WP, r.cr4 or 0
        return Paging(
            mode=mode,
            root=root(r.cr3 or 0, mode),
            wp=cr0 & WP != 0,
            nxe=nxe,
            smep=cr4 & SMEP != 0,
            smap=cr4 & SMAP != 0,
            pse=cr4 & PSE != 0,
            maxphyaddr=self.maxphyaddr,
        )

    # Memory as this CPU sees it

    def translate(self, linear: int, access: Access = READ) -> int:
        """The physical address of a linear one; Inaccessible when there is none."""
        return self.space.translate(linear, access)

    def read(self, linear: int, size: int, access: Access = READ) -> bytes:
        """`size` bytes at a linear address; Inaccessible where there are none."""
        return self.space.read(linear, size, access)

    def probe(self, linear: int, access: Access = READ) -> Probe:
        """Whether an access to one byte is allowed, and where it leads.

        Unknown for a write without page tables, or to where no memory is known to be.
        """
        if access.write and self.space.paging.mode == "flat":
            return Unknown("no page tables without CR3")
        answer = self.space.probe(linear, access)
        if access.write and isinstance(answer, Ok) and not self.memory.backed(answer.physical):
            return unbacked(answer.physical)
        return answer

    def known_stack(self, address: int) -> range | None:
        """The one of `stacks` that an address is in; None where nothing tells how far a stack there reaches."""
        number = bisect(self.stacks, address, key=lambda known: known.start)
        return next((known for known in self.stacks[number - 1 : number] if address in known), None)

    # Tables

    @property
    def wide(self) -> bool:
        """Whether gates and system descriptors have 16 bytes: long mode, compatibility mode included."""
        return self.mode in ("long64", "compat")

    def table(self, name: str) -> Table | None:
        """The bytes of `gdt`, `idt`, `tss` or `ldt` as far as they can be read; None when its register is not known
        or null."""
        if name not in self._tables:
            register = self._register(name)
            if register is None:
                return None
            self._tables[name] = self._read_table(name, register.base, register.limit)
        return self._tables[name]

    def _register(self, name: str) -> TableRegister | Segment | None:
        r = self.registers
        if name in ("gdt", "idt"):
            return r.gdtr if name == "gdt" else r.idtr
        segment = r.tr if name == "tss" else r.ldtr
        return None if segment is None or segment.null else segment

    def _read_table(self, name: str, base: int, limit: int) -> Table:
        size = min(limit, 0xFFFF if name != "tss" else 0xFFFF + 0x2068) + 1
        data = bytearray()
        gaps: list[Gap] = []
        last: object = None  # why the page before could not be read
        while (offset := len(data)) < size:
            address = base + offset & (1 << 64) - 1
            count = min(size - offset, PAGE - address % PAGE)
            try:
                data += (self.memory if name in self.physical else self).read(address, count)
                last = None
            except Inaccessible as error:
                data += bytes(count)
                if type(error.probe) is last:
                    gaps[-1] = gaps[-1].replace(stop=offset + count)
                else:
                    gaps.append(Gap(offset, offset + count, str(error)))
                last = type(error.probe)
        return Table(name, base, limit, bytes(data), tuple(gaps))

    def _data(self, name: str) -> bytes:
        table = self.table(name)
        if table is None:
            register = {"gdt": "GDTR", "idt": "IDTR", "tss": "TR", "ldt": "LDTR"}[name]
            null = "is null: never loaded" if name == "tss" else "is null"
            state = null if self._segment_known(name) else "is not known"
            raise NotThere(f"no {name.upper()}: {register} {state}")
        if table.error:
            raise NotThere(f"the {name.upper()} at {table.base:#x} cannot be read: {table.error}")
        return bytes(table.data)

    def _segment_known(self, name: str) -> bool:
        return (name == "tss" and self.registers.tr is not None) or (name == "ldt" and self.registers.ldtr is not None)

    @cached_property
    def table_pages(self) -> set[int]:
        """The numbers of the physical pages that hold the tables, as far as these are mapped; a null TR counts too."""
        pages, r = set(), self.registers
        for register in (r.gdtr, r.idtr, r.tr, r.ldtr):
            if register is None:
                continue
            for linear in range(register.base & -PAGE, register.base + min(register.limit, 0x11000) + 1, PAGE):
                try:
                    pages.add(self.translate(linear) >> 12)
                except Inaccessible:
                    continue
        return pages

    @cached_property
    def live_selectors(self) -> set[int]:
        """Selectors, RPL 0, of what is in use: present gates', segment registers', TR's, LDTR's, those in STAR."""
        r = self.registers
        try:
            found = {gate.selector for gate in self.gates if gate.p}
        except NotThere:
            found = set()
        found |= {s.selector for s in (r.cs, r.ss, r.ds, r.es, r.fs, r.gs, r.tr, r.ldtr) if s is not None}
        if r.star:
            star = Star.from_int(r.star)
            found |= {star.syscall_cs, star.syscall_ss, star.sysret_ss, star.sysret_cs}
        return {selector & ~3 for selector in found} - {0}

    @cached_property
    def gdt(self) -> Gdt:
        """The GDT, gaps read as zero (see `table("gdt").gaps`); NotThere when nothing of it can be read."""
        return Gdt.parse(self._data("gdt")).freeze()

    @cached_property
    def ldt(self) -> Gdt:
        """The LDT; NotThere when LDTR is null."""
        return Gdt.parse(self._data("ldt")).freeze()

    @cached_property
    def idt(self) -> Idt:
        """The IDT of 16-byte gates; NotThere when nothing of it can be read."""
        return Idt.parse(self._data("idt")).freeze()

    @cached_property
    def narrow_idt(self) -> bool:
        """Whether the IDT of a CPU in long mode holds the 8-byte gates of 32-bit mode."""
        table = self.table("idt") if self.wide else None
        return table is not None and not table.error and holds_legacy_gates(table.data[: 256 * Gate.size])

    @property
    def legacy_idt(self) -> list[LegacyGate]:
        """The 8-byte gates of a CPU in protected mode."""
        data = self._data("idt")[: 256 * LegacyGate.size]
        return LegacyGate.parse_table(data[: len(data) // LegacyGate.size * LegacyGate.size])

    @property
    def gates(self) -> list[Gate | LegacyGate]:
        """The gates of the IDT as the mode has them, 16 or 8 bytes each."""
        return [*self.idt] if self.wide else [*self.legacy_idt]

    @property
    def vector_table(self) -> VectorTable:
        """The vector table of a CPU in real mode."""
        return VectorTable.parse(self._data("idt"))

    @cached_property
    def tss(self) -> Tss:
        """The 64-bit TSS, what is beyond its limit read as zero; NotThere when TR was never loaded."""
        return Tss.parse(self._data("tss")[: Tss.size].ljust(Tss.size, b"\0"))

    @property
    def tss32(self) -> Tss32:
        """The 32-bit TSS, what is beyond its limit read as zero; NotThere when TR was never loaded."""
        return Tss32.parse(self._data("tss")[: Tss32.size].ljust(Tss32.size, b"\0"))

    @property
    def tss16(self) -> Tss16 | None:
        """The 16-bit TSS, what is beyond its limit read as zero; None when TR holds one of another kind."""
        tr = self.registers.tr
        if self.wide or tr is None or tr.descriptor.s or tr.descriptor.type not in TSS16:
            return None
        return Tss16.parse(self._data("tss")[: Tss16.size].ljust(Tss16.size, b"\0"))

    def descriptor_bases(self) -> dict[str, Segment]:
        """TR and LDTR with bits 63:32 of their bases as the descriptors in the GDT have them, where the rest agrees.

        For registers from a text of QEMU's, which prints 8 digits of these bases unless CS is a 64-bit segment.
        """
        found: dict[str, Segment] = {}
        for name in ("tr", "ldtr") if self.mode == "compat" else ():
            segment: Segment | None = getattr(self.registers, name)
            if segment is None or segment.null or segment.base >> 32:
                continue
            try:
                descriptor = self.gdt[segment.selector]
            except NotThere:
                continue
            if isinstance(descriptor, SystemDescriptor) and descriptor.base & 0xFFFF_FFFF == segment.base:
                found[name] = segment.replace(base=descriptor.base)
        return {name: segment for name, segment in found.items() if segment != getattr(self.registers, name)}

    def task(self, selector: int) -> Tss32 | None:
        """The 32-bit TSS that a task gate names; None where the selector names none, or it cannot be read."""
        try:
            descriptor = LegacySystemDescriptor.from_int(self.gdt.slot(selector >> 3))
            if descriptor.s or descriptor.type not in (TSS_AVAILABLE, TSS_BUSY):
                return None
            return Tss32.parse(self.read(descriptor.base, Tss32.size))
        except NotThere:
            return None

    @property
    def io_map(self) -> IoMap | None:
        """The I/O permission bitmap; None when its base lies beyond the TSS limit or the TSS is too short for one.

        NotThere when its base or a part of it cannot be read.
        """
        data, table = self._data("tss"), self.table("tss")
        if table is None or len(data) < Tss.size or self.tss16 is not None:
            return None
        if not table.has(Tss.field("iopb")):
            raise NotThere("the base of the I/O map cannot be read")
        base = self.tss.iopb  # the 32-bit TSS has it at the same place
        ports = IoMap.of(data, base)
        if ports is not None and not table.known(base, base + len(ports.raw)):
            raise NotThere("not all of the I/O map can be read")
        return ports
