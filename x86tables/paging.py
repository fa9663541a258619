"""Page tables: walk them (4 and 5 levels, PAE, 32-bit), list them, build them; address arithmetic lives here."""

from __future__ import annotations

import struct

from .errors import Absent, NotThere, UsageError
from .memory import PAGE, Memory
from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import NoReturn

P, RW, US, PS, NX = 1, 2, 4, 1 << 7, 1 << 63
_ADDRESS = 0x000F_FFFF_FFFF_F000
_u64 = struct.Struct("<Q").unpack
_u32 = struct.Struct("<I").unpack

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
    top = 47 if levels == 4 else 56
    return address >> top in (0, (1 << 64 - top) - 1)


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


class PageEntry(Record):
    """One paging-structure entry that a walk read: its name (`PDPTE`), physical address and value."""

    name: str
    address: int
    value: int


class Page(Record):
    """A mapping: `size` bytes at `linear` are at `physical`; permissions combined over all levels."""

    linear: int
    physical: int
    size: int
    writable: bool
    user: bool
    executable: bool


class PageFault(Exception):  # noqa: N818 - the manual's word
    """#PF: `address` would be in CR2; `entry` is the paging-structure entry that decided, where one did."""

    def __init__(self, address: int, error_code: int, why: str, entry: PageEntry | None = None) -> None:
        super().__init__(f"page fault at {address:#x}: {why}")
        self.address, self.error_code, self.why, self.entry = address, error_code, why, entry


class NonCanonical(NotThere):
    """A linear address that no 64-bit instruction can use; the CPU answers with #GP or #SS."""

    def __init__(self, address: int) -> None:
        super().__init__(f"{address:#x} is not canonical")
        self.address = address


class Undeclared(Absent):
    """A linear address that a declared configuration says nothing of."""

    def __init__(self, address: int) -> None:
        NotThere.__init__(self, f"the configuration says nothing of {address:#x}")
        self.address = address


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
    return cr3 & {"PAE": 0xFFFF_FFE0, "32-bit": 0xFFFF_F000}.get(mode, _ADDRESS)


class AddressSpace:
    """Linear memory as one set of page tables shows it. Nothing is written: accessed and dirty bits stay as they are.

    `declared` holds the linear ranges that a declared configuration describes; outside of them nothing is known.
    """

    def __init__(self, memory: Memory, paging: Paging, declared: list[range] | None = None) -> None:
        self.memory, self.paging, self.declared = memory, paging, declared
        self.levels = 5 if paging.mode == "5-level" else 4
        self._wide = paging.mode in ("4-level", "5-level")
        self._pages: dict[int, Page] = {}
        self._steps = LEVELS[paging.mode]
        reserved = _ADDRESS & ~((1 << paging.maxphyaddr) - 1)
        self._reserved = reserved | (0 if paging.nxe else NX)

    def walk(self, linear: int, note: Callable[[PageEntry], None] | None = None) -> Page:
        """The page that holds `linear`, by the tables alone.

        Raises PageFault with the bits P and RSVD as the walk found them, Absent when a table is not in the image, and
        NonCanonical. `note` is called with each entry read. Sources: SDM Vol. 3A, figures "Linear-Address Translation
        to a 4-KByte Page using 4-Level Paging" and its neighbours.
        """
        if self._wide:
            if not canonical(linear, self.levels):
                raise NonCanonical(linear)
        elif self.paging.mode != "flat":
            linear &= 0xFFFF_FFFF
        if not self._steps:
            return Page(linear & -PAGE, linear & -PAGE, PAGE, True, False, True)
        if self.declared is not None and not any(linear in known for known in self.declared):
            raise Undeclared(linear)
        read, table = self.memory.read, self.paging.root
        narrow = self.paging.mode == "32-bit"
        writable = user = executable = True
        for name, shift, width, large in self._steps:
            index = linear >> shift & (1 << width) - 1
            if narrow:
                address = table + index * 4
                value = _u32(read(address, 4))[0]
            else:
                address = table + index * 8
                value = _u64(read(address, 8))[0]
            if note is not None:
                note(PageEntry(name, address, value))
            if not value & P:
                raise PageFault(linear, 0, f"{name} not present", PageEntry(name, address, value))
            page = shift == 12 or (large and value & PS != 0 and (not narrow or self.paging.pse))
            if wrong := self._reserved_bits(name, value, shift, page):
                why = f"{name} has reserved bits {wrong:#x} set"
                raise PageFault(linear, 1 | 8, why, PageEntry(name, address, value))
            if name != "PDPTE" or self._wide:  # PAE's four top entries have no permissions
                writable = writable and value & RW != 0
                user = user and value & US != 0
                executable = executable and (narrow or value & NX == 0)
            if page:
                size = 1 << shift
                start = value & _ADDRESS & -size
                if narrow:
                    start = (value & 0xFFFF_F000 & -size) | ((value >> 13 & 0xFF) << 32 if shift == 22 else 0)
                return Page(linear & -size, start, size, writable, user, executable)
            table = value & (0xFFFF_F000 if narrow else _ADDRESS)
        raise AssertionError("the last level always ends the walk")

    def _reserved_bits(self, name: str, value: int, shift: int, page: bool) -> int:
        """The bits of a present entry that must be 0 and are not."""
        if self.paging.mode == "32-bit":
            return value & 1 << 21 if page and shift == 22 else 0
        if self.paging.mode == "PAE":
            if name == "PDPTE":
                return 0  # checked when CR3 is loaded, not by a walk
            reserved = self._reserved | 0x7FF0_0000_0000_0000
        else:
            reserved = self._reserved | (PS if name in ("PML4E", "PML5E") else 0)
        if page and shift > 12:
            reserved |= (1 << shift) - 1 & ~0x1FFF
        return value & reserved

    def page(self, linear: int) -> Page:
        """`walk`, remembered: a page that was found once is not looked up again."""
        found = self._pages.get(linear >> 12)
        if found is None:
            found = self._pages[linear >> 12] = self.walk(linear)
        return found

    def translate(self, linear: int, access: Access = READ) -> int:
        """The physical address of a linear one; PageFault, Absent or NonCanonical when there is none."""
        page = self._pages.get(linear >> 12)
        if page is None:
            try:
                page = self.page(linear)
            except PageFault as fault:
                fault.error_code |= self._cause(access)
                raise
        if access is not READ or self.paging.smap:
            self._check(linear, page, access)
        return page.physical + (linear & page.size - 1)

    def _cause(self, access: Access) -> int:
        """The bits of a page-fault error code that tell of the access: W/R, U/S, I/D."""
        fetch = access.fetch and (self.paging.nxe or self.paging.smep)
        return access.write << 1 | access.user << 2 | fetch << 4

    def _check(self, linear: int, page: Page, access: Access) -> None:
        """Access rights. Source: SDM Vol. 3A, "Determination of Access Rights"."""
        paging = self.paging
        if access.user:
            if not page.user:
                self._refuse(linear, access, "user access to a supervisor page")
            if access.write and not page.writable:
                self._refuse(linear, access, "write to a read-only page")
        else:
            if access.write and not page.writable and paging.wp:
                self._refuse(linear, access, "write to a read-only page with CR0.WP set")
            if page.user and access.fetch and paging.smep:
                self._refuse(linear, access, "fetch from a user page with CR4.SMEP set")
            if page.user and not access.fetch and paging.smap and (access.implicit or not access.ac):
                self._refuse(linear, access, "supervisor access to a user page with CR4.SMAP set")
        if access.fetch and not page.executable and paging.nxe:
            self._refuse(linear, access, "fetch from a page with execute-disable set")

    def _refuse(self, linear: int, access: Access, why: str) -> NoReturn:
        entries: list[PageEntry] = []
        self.walk(linear, entries.append)
        raise PageFault(linear, 1 | self._cause(access), why, entries[-1] if entries else None)

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

    def mappings(self) -> Iterator[Page]:
        """Every mapping in ascending order of the lower and then the upper half; tables not in the image are left out.

        A generator without end would be possible (a table may point at itself many times over): stop when you have
        seen enough.
        """
        if self._steps:
            yield from self._list(0, self.paging.root, 0, True, True, True)

    def _list(self, depth: int, table: int, base: int, writable: bool, user: bool, executable: bool) -> Iterator[Page]:
        name, shift, width, large = self._steps[depth]
        narrow = self.paging.mode == "32-bit"
        count = 1 << width
        try:
            data = self.memory.read(table, count * (4 if narrow else 8))
        except Absent:
            return
        size, bits = 1 << shift, 57 if self.levels == 5 else 48
        plain = name == "PDPTE" and not self._wide
        for index, value in enumerate(struct.unpack(f"<{count}{'I' if narrow else 'Q'}", data)):
            if not value & P:
                continue
            page = shift == 12 or (large and value & PS != 0 and (not narrow or self.paging.pse))
            if self._reserved_bits(name, value, shift, page):
                continue
            linear = base + (index << shift)
            if depth == 0 and self._wide:
                linear = sign_extend(linear, bits)
            w = plain or (writable and value & RW != 0)
            u = plain or (user and value & US != 0)
            x = plain or (executable and (narrow or value & NX == 0))
            if not page:
                yield from self._list(depth + 1, value & (0xFFFF_F000 if narrow else _ADDRESS), linear, w, u, x)
                continue
            start = value & _ADDRESS & -size
            if narrow:
                start = (value & 0xFFFF_F000 & -size) | ((value >> 13 & 0xFF) << 32 if shift == 22 else 0)
            yield Page(linear, start, size, w, u, x)


class Region(Record):
    """A stretch of linear memory for `build`: page-aligned, with its physical place and permissions."""

    linear: int
    size: int
    physical: int
    writable: bool = True
    user: bool = False
    executable: bool = True


def build(regions: Iterable[Region], tables: int, levels: int = 4) -> tuple[int, dict[int, bytes]]:
    """Page tables for `regions` in 4 KiB pages: (CR3, physical address -> page of a table).

    The tables take physical pages from `tables` upwards, as many as they need. Intermediate entries allow everything;
    the last level has the permissions. UsageError for unaligned, non-canonical or overlapping regions.
    """
    built: dict[int, list[int]] = {tables: [0] * 512}
    steps = LEVELS["4-level" if levels == 4 else "5-level"]
    for region in regions:
        if (region.linear | region.size | region.physical) & PAGE - 1:
            raise UsageError(f"region at {region.linear:#x}: address, size and place are multiples of {PAGE:#x}")
        for offset in range(0, region.size, PAGE):
            linear, table = region.linear + offset, tables
            if not canonical(linear, levels):
                raise UsageError(f"region at {region.linear:#x}: {linear:#x} is not canonical")
            for _, shift, _, _ in steps[:-1]:
                index = linear >> shift & 511
                if not built[table][index]:
                    new = tables + len(built) * PAGE
                    built[new] = [0] * 512
                    built[table][index] = new | P | RW | US
                table = built[table][index] & _ADDRESS
            index = linear >> 12 & 511
            if built[table][index]:
                raise UsageError(f"region at {region.linear:#x}: {linear:#x} is mapped already")
            built[table][index] = (
                region.physical + offset
                | P
                | (RW if region.writable else 0)
                | (US if region.user else 0)
                | (0 if region.executable else NX)
            )
    return tables, {address: struct.pack("<512Q", *entries) for address, entries in built.items()}
