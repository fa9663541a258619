"""Page tables, walked as processors do (4 and 5 levels, PAE, 32-bit); address arithmetic lives here."""

from __future__ import annotations

import struct
import sys

from ..budgets import KEPT_PAGES, KEPT_TABLES
from ..records import Record
from . import probe as answer
from .memory import PAGE, Memory
from .probe import Absent, Fault, FaultKind, Inaccessible, Ok, PageEntry, Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn, TypeAlias

    from .coverage import Coverage
    from .probe import Probe

    Step: TypeAlias = tuple[str, int, int, bool, bool, int, int]
    Found: TypeAlias = tuple[int, int, int]

P, RW, US, ACCESSED, PS, NX = 1, 2, 4, 1 << 5, 1 << 7, 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000

# Per mode: (name of the entry, shift of its index, bits of the index, whether PS may make it a page), top level first.
# "none" is a CPU with paging off; "flat" an image whose addresses are taken as they are.
LEVELS = {
    "5-level": (
        ("PML5E", 48, 9, False),
        ("PML4E", 39, 9, False),
        ("PDPTE", 30, 9, True),
        ("PDE", 21, 9, True),
        ("PTE", 12, 9, False),
    ),
    "4-level": (("PML4E", 39, 9, False), ("PDPTE", 30, 9, True), ("PDE", 21, 9, True), ("PTE", 12, 9, False)),
    "PAE": (("PDPTE", 30, 2, False), ("PDE", 21, 9, True), ("PTE", 12, 9, False)),
    "32-bit": (("PDE", 22, 10, True), ("PTE", 12, 10, False)),
    "none": (),
    "flat": (),
}


def canonical(address: int, levels: int = 4) -> bool:
    """Whether the unused high bits of a linear address repeat the highest used one (bit 47, or 56 with LA57)."""
    return address >> 47 in (0, 0x1FFFF) if levels == 4 else address >> 56 in (0, 0xFF)


def sign_extend(address: int, bits: int) -> int:
    """A linear address of `bits` bits in its canonical 64-bit form."""
    return address | ((1 << 64) - (1 << bits)) if address >> bits - 1 & 1 else address


class Access(Record):
    """How memory is touched. `implicit` accesses (tables) are the supervisor's at any CPL; RFLAGS.AC lifts SMAP only
    from explicit ones."""

    write: bool = False
    user: bool = False
    fetch: bool = False
    implicit: bool = False
    ac: bool = False


READ = Access(implicit=True)
WRITE = Access(write=True, implicit=True)
PUSH = Access(write=True)


class Page(Record):
    """A mapping: `size` bytes at `linear` are at `physical`; permissions combined over all levels."""

    __slots__ = ()  # very many are made

    linear: int
    physical: int
    size: int
    writable: bool = True
    user: bool = False
    executable: bool = True


page_of = Page.maker()


class Paging(Record):
    """The control bits that decide about translations."""

    mode: str = "4-level"
    root: int = 0
    wp: bool = True
    nxe: bool = True
    smep: bool = False
    smap: bool = False
    pse: bool = True
    maxphyaddr: int = 52


def root(cr3: int, mode: str) -> int:
    """The physical address in CR3 without PCID, LAM and no-flush bits."""
    return cr3 & {"PAE": 0xFFFF_FFE0, "32-bit": 0xFFFF_F000}.get(mode, ADDRESS)


class AddressSpace:
    """Linear memory as one set of page tables shows it. Nothing is written: accessed and dirty bits stay as they are.

    `declared` is the linear memory that a configuration describes; outside of it nothing is known. `steps` are the
    levels of a walk.
    """

    def __init__(self, memory: Memory, paging: Paging, declared: Coverage | None = None) -> None:
        self.memory, self.paging, self.declared = memory, paging, declared
        self.levels = 5 if paging.mode == "5-level" else 4
        self.wide = paging.mode in ("4-level", "5-level")
        self.narrow, self._smap = paging.mode == "32-bit", paging.smap
        self._all = -1 if self.wide or paging.mode == "flat" else 0xFFFF_FFFF
        self.entry_size = 4 if self.narrow else 8
        self.table_mask = 0xFFFF_F000 if self.narrow else ADDRESS
        self.steps = [self._step(*level) for level in LEVELS[paging.mode]]
        self._last, self._last_two = self.steps[-1:], self.steps[-2:]
        if self.steps:
            self._leaf_mask, self._leaf_bits = self.steps[-1][2], self.steps[-1][6] | P
            self._large_bits = self.steps[-2][6] | PS | P
        self._pages: dict[int, Found] = {}
        self._tables: dict[int, Sequence[int]] = {}
        # What walks found in PDPTEs and PDEs, by the linear memory that those cover: a table or a large page. Not where
        # some of that memory may be undeclared.
        self._low = 22 if self.narrow else 21
        self._pdptes: dict[int, Found] = {}
        self._pdes: dict[int, Found] = {}
        # page tables by the memory that they cover, and directories that have large pages by theirs
        self._leaves: dict[int, Sequence[int]] = {}
        self._directories: dict[int, Sequence[int]] = {}
        self._keeps = declared is None

    def _step(self, name: str, shift: int, width: int, large: bool) -> Step:
        """A level of the walk: name, shift and mask of its index, whether PS may make an entry a page, whether entries
        have permissions, and the bits that must be 0 in a present one that names a table, and in one of a page."""
        mask, paging = (1 << width) - 1, self.paging
        if self.narrow:
            return name, shift, mask, large and paging.pse, True, 0, 1 << 21 if shift == 22 else 0
        if name == "PDPTE" and not self.wide:
            # PAE's top entries are checked when CR3 is loaded, not by a walk
            return name, shift, mask, large, False, 0, 0
        reserved = ADDRESS & ~((1 << paging.maxphyaddr) - 1) | (0 if paging.nxe else NX)
        reserved |= 0 if self.wide else 0x7FF0_0000_0000_0000
        reserved |= PS if name in ("PML4E", "PML5E") else 0
        return name, shift, mask, large, True, reserved, reserved | ((1 << shift) - 1 & ~0x1FFF if shift > 12 else 0)

    def walk(self, linear: int, note: Callable[[PageEntry], None] | None = None) -> Page:
        """The page that holds `linear`, by the tables alone.

        Raises Inaccessible; the error code of its fault has the bits P and RSVD only. `note` is called with each entry
        read. Sources: SDM Vol. 3A, figures "Linear-Address Translation to a 4-KByte Page using 4-Level Paging" and its
        neighbours.
        """
        return self._page(linear, self._from_top(linear, note))

    def _page(self, linear: int, found: Found) -> Page:
        place, shift, allowed = found
        w, u, x = allowed & RW != 0, allowed & US != 0, allowed & NX != 0
        return page_of((linear & self._all & -1 << shift, place, 1 << shift, w, u, x))

    def _from_top(self, linear: int, note: Callable[[PageEntry], None] | None = None) -> Found:
        if self.wide and not canonical(linear, self.levels):
            raise Inaccessible(Fault(FaultKind.NON_CANONICAL, linear))
        linear &= self._all
        if not self.steps:
            return linear & -PAGE, 12, RW | NX
        if self.declared is not None and linear not in self.declared:
            raise Inaccessible(Unknown(f"the configuration says nothing of {self.declared.name(linear)}"))
        return self._walk(linear, self.steps, self.paging.root, -1, note)

    def _walk(
        self,
        linear: int,
        steps: list[Step],
        table: int,
        allowed: int,
        note: Callable[[PageEntry], None] | None = None,
    ) -> Found:
        """The walk from `table` on: where the page is, log2 of its size (0 for a table where it is remembered), and
        `allowed`: RW and US where all levels have them, NX where none has it."""
        tables, size = self._tables, self.entry_size
        for name, shift, mask, large, has_rights, as_table, as_page in steps:
            index = linear >> shift & mask
            # Tables are kept whole. PAE has a top table of 32 bytes, which is not kept: another entry may name the same
            # address as a directory.
            data = tables.get(table) or self._read(table, (mask + 1) * size) if has_rights else ()
            value = data[index] if data else int.from_bytes(self.memory.read(table + index * size, size), "little")
            if note is not None:
                note(PageEntry(name, table + index * size, value))
            if not value & P:
                raise Inaccessible(Fault(FaultKind.UNMAPPED, linear, 0, PageEntry(name, table + index * size, value)))
            page = shift == 12 or (large and value & PS)
            if wrong := value & (as_page if page else as_table):
                entry = PageEntry(name, table + index * size, value)
                raise Inaccessible(
                    Fault(FaultKind.RESERVED_BITS, linear, answer.PRESENT | answer.RESERVED, entry, wrong)
                )
            if has_rights:
                allowed &= value ^ NX
            if page:
                if shift == 12:
                    if data and self._keeps and not self._smap:
                        self._leaves[linear >> self._low] = data
                    return value & self.table_mask, 12, allowed
                if shift == 21 and data and self._keeps and not self._smap:
                    self._directories[linear >> 30] = data
                found = self.frame(value, shift), shift, allowed
                if self._keeps:
                    self._pdes[linear >> self._low] = found
                return found
            table = value & self.table_mask
            if self._keeps:
                if shift == self._low:
                    self._pdes[linear >> shift] = table, 0, allowed
                elif shift == 30:
                    self._pdptes[linear >> shift] = table, 0, allowed
        raise AssertionError("the last level always ends the walk")

    def _read(self, table: int, size: int) -> Sequence[int]:
        """The entries of a table, kept; none when the image does not hold all of them."""
        try:
            data = self.memory.read(table, size)
        except Absent:
            return ()
        if len(self._tables) >= KEPT_TABLES:
            self._tables.clear()
            self._leaves.clear()
            self._directories.clear()
        entries: Sequence[int]
        if sys.byteorder == "little":  # half as long as to unpack the one entry
            entries = memoryview(data).cast("I" if self.narrow else "Q")
        else:
            entries = struct.unpack(f"<{size // self.entry_size}{'I' if self.narrow else 'Q'}", data)
        self._tables[table] = entries
        return entries

    def frame(self, value: int, shift: int) -> int:
        """The physical address of the page that an entry maps; that of 4 MiB has bits 39:32 in bits 20:13."""
        frame: int = value & self.table_mask & -1 << shift
        return frame | (value >> 13 & 0xFF) << 32 if shift == 22 else frame

    def page(self, linear: int) -> Page:
        """`walk`, remembered: a page that was found once is not looked up again."""
        return self._page(linear, self._remembered(linear))

    def start_of(self, linear: int) -> int:
        """Where the page that holds `linear` begins; Inaccessible when there is none."""
        return linear & self._all & -1 << self._remembered(linear)[1]

    def _remembered(self, linear: int) -> Found:
        found = self._pages.get(linear >> 12)
        if found is None:
            if len(self._pages) >= KEPT_PAGES:
                self._pages.clear()
            found = self._pages[linear >> 12] = self._find(linear)
        return found

    def _find(self, linear: int) -> Found:
        """`walk`, begun at the page table or the page directory where it is remembered, as processors do it.

        Source: SDM Vol. 3A, "Caching Translation Information".
        """
        if (known := self._pdes.get(linear >> self._low)) is not None:
            table, shift, allowed = known
            if shift:
                return known
            if (entries := self._tables.get(table)) is not None:
                value = entries[linear >> 12 & self._leaf_mask]
                if value & self._leaf_bits == P:  # the usual case; of any other the walk says what is wrong
                    return value & self.table_mask, 12, allowed & (value ^ NX)
            return self._walk(linear, self._last, table, allowed)
        if (known := self._pdptes.get(linear >> 30)) is not None:
            table, _, allowed = known
            return self._walk(linear, self._last_two, table, allowed)
        return self._from_top(linear)

    def translate(self, linear: int, access: Access = READ) -> int:
        """The physical address of a linear one; Inaccessible when there is none."""
        if access is READ:
            # the usual cases, where rights do not matter: of any other the walk says what is wrong
            if (table := self._leaves.get(linear >> self._low)) is not None:
                value = table[linear >> 12 & self._leaf_mask]
                if value & self._leaf_bits == P:
                    return (value & self.table_mask) + (linear & 0xFFF)
            elif (table := self._directories.get(linear >> 30)) is not None:
                value = table[linear >> 21 & 0x1FF]
                if value & self._large_bits == PS | P:
                    return (value & self.table_mask & -0x20_0000) + (linear & 0x1F_FFFF)
        try:
            place, shift, allowed = self._remembered(linear)
        except Inaccessible as error:
            cause, probe = self._cause(access), error.probe
            if not cause or isinstance(probe, Unknown) or probe.kind is FaultKind.NON_CANONICAL:
                raise
            code = probe.error_code | cause
            raise Inaccessible(Fault(probe.kind, probe.address, code, probe.entry, probe.reserved)) from None
        if access is not READ or self._smap:
            self._check(linear, allowed, access)
        return place + (linear & (1 << shift) - 1)

    def _cause(self, access: Access) -> int:
        """The bits of a page-fault error code that tell of the access: W/R, U/S, I/D."""
        fetch = access.fetch and (self.paging.nxe or self.paging.smep)
        return (
            (answer.WRITE if access.write else 0) | (answer.USER if access.user else 0) | (answer.FETCH if fetch else 0)
        )

    def _check(self, linear: int, allowed: int, access: Access) -> None:
        """Access rights. Source: SDM Vol. 3A, "Determination of Access Rights"."""
        paging = self.paging
        writable, user, executable = allowed & RW, allowed & US, allowed & NX
        if access.user:
            if not user:
                self._refuse(linear, access, FaultKind.SUPERVISOR_PAGE)
            if access.write and not writable:
                self._refuse(linear, access, FaultKind.READ_ONLY)
        else:
            if access.write and not writable and paging.wp:
                self._refuse(linear, access, FaultKind.READ_ONLY)
            if user and access.fetch and paging.smep:
                self._refuse(linear, access, FaultKind.USER_PAGE)
            if user and not access.fetch and paging.smap and (access.implicit or not access.ac):
                self._refuse(linear, access, FaultKind.USER_PAGE)
        if access.fetch and not executable and paging.nxe:
            self._refuse(linear, access, FaultKind.EXECUTE_DISABLE)

    def _refuse(self, linear: int, access: Access, kind: FaultKind) -> NoReturn:
        entries: list[PageEntry] = []
        self.walk(linear, entries.append)
        entry = entries[-1] if entries else None
        raise Inaccessible(Fault(kind, linear, answer.PRESENT | self._cause(access), entry))

    def probe(self, linear: int, access: Access = READ) -> Probe:
        """Whether an access to one byte is allowed, and where it leads."""
        try:
            return Ok(self.translate(linear, access))
        except Inaccessible as error:
            return error.probe

    def read(self, linear: int, size: int, access: Access = READ) -> bytes:
        """`size` bytes at a linear address, each page translated; the fault names the first byte that failed."""
        room = PAGE - (linear & PAGE - 1)
        if size <= room:
            return self.memory.read(self.translate(linear, access), size)
        parts = [self.memory.read(self.translate(linear, access), room)]
        linear, size = linear + room & (1 << 64) - 1, size - room
        while size > 0:
            count = min(size, PAGE)
            parts.append(self.memory.read(self.translate(linear, access), count))
            linear, size = linear + count & (1 << 64) - 1, size - count
        return b"".join(parts)
