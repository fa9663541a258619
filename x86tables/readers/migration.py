"""QEMU's migration stream, as `migrate exec:cat>FILE`, `migrate file:FILE` and `virsh save` write it.

Pages of RAM by block and offset, then the state of each device, and at the end a description of these in JSON, by which
the fields of the CPUs are found (QEMU: migration/ram.c, migration/savevm.c, docs/devel/migration).
"""

from __future__ import annotations

import struct

from .. import budgets
from ..errors import ImageError
from ..machine.files import unpack
from ..machine.memory import PAGE, Memory
from ..machine.pages import ScatteredPages
from . import Contents, vmstate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import NoReturn

    from ..machine.files import Data
    from ..machine.image import OpenOptions
    from ..machine.memory import Piece
    from ..machine.registers import Registers

_MAGIC, _VERSION = b"QEVM", 3
_LIBVIRT = (b"LibvirtQemudSave", b"LibvirtQemudPart")
_LIBVIRT_HEADER = struct.Struct("16sIIIII56x")  # magic, version, bytes that follow, was running, compression, cookie
_PACKED = {1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd", 6: "sparse"}
_EOF, _START, _PART, _END, _FULL, _SUBSECTION, _CONFIGURATION, _COMMAND, _FOOTER = 0, 1, 2, 3, 4, 5, 7, 8, 0x7E
_ZERO, _SIZES, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20  # in the low bits of a page's address
_OTHERS = {0x40: "xbzrle", 0x80: "rdma", 0x100: "compress", 0x200: "multifd"}
_WINDOW = 1 << 20  # bytes of the stream that are read at once
_HEAD = 300  # the most that a record of a page has before its contents
_VGA = range(0xA_0000, 0xC_0000)  # what a display adapter has instead of RAM
_PAM = {b"/I440FX": 0x59, b"/mch": 0x90}  # where a host bridge's PCI configuration has these registers
_OPTIONS, _1M, _4G = 0xC_0000, 1 << 20, 1 << 32  # option ROMs, and from 0xe0000 on the end of the firmware
_RAM, _DEVICES = (b"pc.ram", b"microvm.ram"), (b"pc.", b"system.flash", b"isa-bios")


def matches(data: Data) -> bool:
    """A stream, or libvirt's header before one."""
    return data[:4] == _MAGIC or data[:16] in _LIBVIRT


def read(path: str, data: Data, options: OpenOptions) -> Contents:
    """Memory by the map of QEMU's machines, and the registers of each CPU as the stream describes them."""
    at = 0
    if data[:16] in _LIBVIRT:
        data, at = _libvirt(path, data)
    stream = _Stream(path, data, at)
    registers = stream.read()
    memory = Memory(_pieces(path, stream))
    return Contents(
        memory,
        registers,
        remarks=tuple(stream.remarks),
        lacks="this migration stream does not describe its CPUs",
    )


def _libvirt(path: str, data: Data) -> tuple[Data, int]:
    """The stream in a file of `virsh save`, and where it begins."""
    head = data[: _LIBVIRT_HEADER.size]
    if len(head) < _LIBVIRT_HEADER.size:
        raise ImageError(f"{path}: libvirt's header has {_LIBVIRT_HEADER.size} bytes: the file ends at {len(data):#x}")
    for order in "<>":
        _, version, size, _, packed, _ = struct.unpack(order + _LIBVIRT_HEADER.format, head)
        if version < 0x100:
            break
    at = _LIBVIRT_HEADER.size + size
    if at > len(data):
        raise ImageError(f"{path}: libvirt's header claims {size:#x} bytes: the file ends at {len(data):#x}")
    if not packed:
        return data, at
    name = _PACKED.get(packed, f"format {packed}")
    if name not in ("gzip", "xz", "zstd") or isinstance(data, bytes):
        raise ImageError(
            f'{path}: libvirt packed this state ({name}): save it again with save_image_format = "raw" in qemu.conf'
        )
    return unpack(path, data, at, name), 0


class _Stream:
    """A stream from its magic to its end."""

    def __init__(self, path: str, data: Data, at: int) -> None:
        self.path, self.data, self.at = path, data, at
        self.blocks: dict[bytes, ScatteredPages] = {}
        self.machine = b""
        self.remarks: list[str] = []
        self.roms: list[range] = []  # where reads below 1 MiB do not go to RAM
        self._sections: dict[int, bytes] = {}
        self._block: ScatteredPages | None = None  # of the page before, in another section, too

    def _damaged(self, what: str) -> NoReturn:
        raise ImageError(f"{self.path}: a migration stream, damaged or cut off at {self.at:#x}: {what}")

    def _take(self, size: int) -> bytes:
        found = self.data[self.at : self.at + size]
        if len(found) < size:
            self._damaged(f"{size:#x} bytes expected, the file ends at {len(self.data):#x}")
        self.at += size
        return found

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _name(self) -> bytes:
        return self._take(self._number(1))

    def read(self) -> tuple[Registers, ...]:
        """Take all sections; the registers of each CPU."""
        magic, version = self._take(4), self._number(4)
        if magic != _MAGIC or version != _VERSION:
            raise ImageError(f"{self.path}: a migration stream of version {version}: QEVM and {_VERSION} expected")
        devices = iter(vmstate.devices(self.path, self.data))
        described, registers = True, []
        while described and (kind := self._number(1)) != _EOF:
            if kind == _CONFIGURATION:
                self._configuration()
            elif kind == _COMMAND:
                self._take(2)
                self._take(self._number(2))
            elif kind in (_START, _PART, _END):
                self._ram(kind)
            elif kind == _FULL:
                section, name = self._take(4), self._name()
                instance = self._number(4)
                self._take(4)  # the version
                device = next(devices, None)
                if device is None:
                    described = False  # so nothing tells where the next section begins
                    self.remarks.append("the stream ends without a description of its devices, or this is cut off")
                    continue
                if (device.name, device.instance) != (name, instance):
                    self._damaged(f"section {vmstate.text(name)} is not the next that the description names")
                if self.at + device.size > len(self.data):
                    self._damaged(f"section {vmstate.text(name)} has {device.size:#x} bytes")
                if name == b"cpu":
                    registers.append(device.registers(self.data, self.at))
                    if len(registers) > budgets.CPUS:
                        raise ImageError(f"{self.path}: more than {budgets.CPUS} CPUs are not read")
                elif bridge := next((at for end, at in _PAM.items() if name.endswith(end)), 0):
                    self.roms += _roms(device.configuration(self.data, self.at)[bridge : bridge + 7])
                self.at += device.size
                self._footer(section)
            else:
                self._damaged(f"{kind:#x} begins no section")
        if not self.blocks:
            raise ImageError(f"{self.path}: a migration stream without RAM")
        return tuple(registers)

    def _footer(self, section: bytes) -> None:
        if self.data[self.at : self.at + 1] == bytes([_FOOTER]):
            self.at += 1
            if self._take(4) != section:
                self._damaged("the end of another section")

    def _configuration(self) -> None:
        size = self._number(4)
        if size > budgets.NAME:
            self._damaged(f"a machine whose name has {size:#x} bytes")
        self.machine = self._take(size)
        while self.data[self.at : self.at + 1] == bytes([_SUBSECTION]):
            self.at += 1
            name = self._name()
            self._take(4)  # the version
            if name == b"configuration/target-page-bits":
                self._take(4)
            elif name == b"configuration/uuid":
                self._take(16)
            elif name == b"configuration/capabilities":
                for _ in range(self._number(4)):
                    if (capability := self._name()) in (b"x-ignore-shared", b"mapped-ram"):
                        self._refuse(capability.decode())
            else:
                self._damaged(f"{vmstate.text(name)} is not known")

    def _refuse(self, capability: str) -> NoReturn:
        raise ImageError(
            f"{self.path}: a migration stream with the capability {capability}, which is not read: "
            f"migrate again after `migrate_set_capability {capability} off`"
        )

    def _ram(self, kind: int) -> None:
        section = self._take(4)
        number = int.from_bytes(section, "big")
        if kind == _START:
            name = self._name()
            self._take(8)  # instance and version
            if len(self._sections) == budgets.RANGES:
                self._damaged(f"more than {budgets.RANGES} sections")
            self._sections[number] = name
        if self._sections.get(number) != b"ram":
            what = vmstate.text(self._sections.get(number, b""))
            raise ImageError(
                f"{self.path}: section {what} at {self.at:#x} of this migration stream is not of RAM, and does not say "
                "how long it is: migrate without disks and devices that are copied live"
            )
        self._pages()
        self._footer(section)

    def _pages(self) -> None:
        """The records of RAM up to the end of the section."""
        data, at, blocks = self.data, self.at, self.blocks
        window, base, block = b"", 0, self._block
        size = len(block) if block is not None else 0
        while True:
            i = at - base
            if i + _HEAD > len(window):
                window, base, i = data[at : at + _WINDOW], at, 0
                if len(window) < 8:
                    self.at = at
                    self._damaged("a page expected")
            head = int.from_bytes(window[i : i + 8], "big")
            flags = head & PAGE - 1
            at += 8
            if flags & _EOS:
                self.at, self._block = at, block
                return
            if flags & _SIZES:
                self.at = at
                self._block_sizes(head & -PAGE)
                at = self.at
                continue
            if flags not in (_ZERO, _PAGE, _ZERO | _CONTINUE, _PAGE | _CONTINUE):
                self.at = at
                if other := next((name for bit, name in _OTHERS.items() if flags & bit), ""):
                    self._refuse(other)
                self._damaged(f"a page with the flags {flags:#x}")
            if not flags & _CONTINUE:
                length = window[i + 8] if i + 8 < len(window) else 0
                name = window[i + 9 : i + 9 + length]
                block = blocks.get(name)
                at += 1 + length
                if block is None:
                    self.at = at
                    self._damaged(f"a page of the block {vmstate.text(name)}, which it does not have")
                size = len(block)
            if block is None or (head & -PAGE) >= size:
                self.at = at
                self._damaged(f"a page at {head & -PAGE:#x} of a block of {size:#x} bytes")
            if flags & _ZERO:
                byte = data[at : at + 1] if at - base >= len(window) else window[at - base : at - base + 1]
                block.fill(head // PAGE, byte[0] if byte else 0)
                at += 1
            else:
                block.put(head // PAGE, at)
                at += PAGE
            if at > len(data):
                self.at = at
                self._damaged(f"the file ends at {len(data):#x}, within a page")

    def _block_sizes(self, total: int) -> None:
        while total > 0:
            name, size = self._name(), self._number(8)
            if not size or size > total:
                self._damaged(f"the block {vmstate.text(name)} has {size:#x} bytes of {total:#x}")
            if len(self.blocks) == budgets.RANGES:
                self._damaged(f"more than {budgets.RANGES} blocks of memory")
            self.blocks[name] = ScatteredPages(self.data, size)
            total -= size


def _roms(pam: bytes) -> list[range]:
    """What a host bridge's PAM registers leave to ROM when it is read; each has bits for one or two ranges."""
    ranges = [(pam[:1], 4, range(0xF_0000, _1M))]
    for number in range(12):
        start = _OPTIONS + 0x4000 * number
        ranges.append((pam[1 + number // 2 : 2 + number // 2], number % 2 * 4, range(start, start + 0x4000)))
    return [each for register, bit, each in ranges if register and not register[0] >> bit & 1]


def _pieces(path: str, stream: _Stream) -> Iterable[Piece]:
    """Where the blocks lie in physical memory: RAM below and above the hole under 4 GiB, firmware at its end.

    The other blocks are of devices, which the guest places.
    """
    blocks, machine = stream.blocks, stream.machine
    named = {name.removeprefix(b"/objects/"): block for name, block in blocks.items()}
    # memory backends have the names that their user gave them
    of_ram = [name for name in named if name in _RAM]
    of_ram = of_ram[:1] or [
        name for name in named if not (b"/" in name or name.startswith(_DEVICES) or b"vram" in name)
    ]
    if not of_ram:
        raise ImageError(f"{path}: none of its blocks is a PC's RAM: {', '.join(map(vmstate.text, [*blocks][:8]))}")
    if len(of_ram) > 1:
        of_ram.sort(key=lambda name: (len(name), name))
        names = ", ".join(map(vmstate.text, of_ram[:8]))
        stream.remarks.append(f"RAM is in {len(of_ram)} blocks, which are taken in the order of their names: {names}")
    ram = [named[name] for name in of_ram]
    size = sum(map(len, ram))
    below = _below_4g(size, machine)
    roms = [range(0xF_0000, _1M)] if b"microvm" in machine else stream.roms
    hidden = sorted([_VGA, *roms] if any(b"vram" in name for name in blocks) else roms, key=lambda each: each.start)
    at = 0
    pieces: list[Piece] = []
    for block in ram:
        for part in _without(hidden, range(at, min(below, at + len(block)))):
            pieces.append((part.start, len(part), block, part.start - at))
        if (above := max(below, at)) < at + len(block):
            pieces.append((_4G + above - below, at + len(block) - above, block, above - at))
        at += len(block)
    firmware, options = named.get(b"pc.bios") or named.get(b"system.flash0"), named.get(b"pc.rom")
    for rom in roms:
        if rom.start >= 0xE_0000 and firmware is not None and len(firmware) >= _1M - rom.start:
            pieces.append((rom.start, len(rom), firmware, len(firmware) - (_1M - rom.start)))
        elif rom.start < 0xE_0000 and options is not None and len(options) >= rom.stop - _OPTIONS:
            pieces.append((rom.start, len(rom), options, rom.start - _OPTIONS))
    top = _4G
    for name in (b"pc.bios", b"system.flash0", b"system.flash1"):
        if name in named and len(named[name]) <= top - below:
            top -= len(named[name])
            pieces.append((top, len(named[name]), named[name], 0))
    return pieces


def _without(hidden: Iterable[range], part: range) -> Iterator[range]:
    """What is left of a range of addresses without these."""
    at = part.start
    for each in hidden:
        if at < each.start < part.stop:
            yield range(at, each.start)
        if each.start < part.stop:
            at = max(at, each.stop)
    if at < part.stop:
        yield range(at, part.stop)


def _below_4g(size: int, machine: bytes) -> int:
    """How much RAM a machine of QEMU's has below 4 GiB, when max-ram-below-4g was not given."""
    if b"q35" in machine:
        return min(size, 0x8000_0000) if size >= 0xB000_0000 else size
    hole = 0xC000_0000 if b"microvm" in machine else 0xE000_0000
    return min(size, 0xC000_0000) if size >= hole else size
