"""Hostile images in the formats of virtual machine monitors and debuggers: LARGE are made when they are tested."""

import struct
import zlib

HEADER = b"PAGEDU64".ljust(0xF98, b"\0")


def bitmap() -> bytes:
    """A crash dump whose bitmap has every other page, 2 million of them."""
    bits = b"\x55" * (1 << 19)
    described = b"SDMPDUMP" + bytes(24) + struct.pack("<QQQ", 0x3000 + len(bits), 1, 8 * len(bits)) + bits
    return (HEADER + struct.pack("<I", 5)).ljust(0x2000, b"\0") + described + bytes(0x4000)


def ranges() -> bytes:
    """A crash dump of a million ranges, each a page and the one after the last."""
    listed = b"".join(struct.pack("<QQ", 1 + page, 1) for page in range(1 << 18)) * 4
    described = struct.pack("<I4s4sIQQ", 0x40, b"RDMP", b"DUMP", 0, len(listed) + 16, 0x2030 + len(listed)) + bytes(16)
    return (HEADER + struct.pack("<I", 8)).ljust(0x2000, b"\0") + described + listed


def tags() -> bytes:
    """A state file of VMware's whose group of tags has no end: each of them is two bytes."""
    head = b"\xd2\xbe\xd2\xbe" + struct.pack("<II", 0, 2)
    groups = b"".join(struct.pack("<64sQQ", name, 172, 0) for name in (b"cpu", b"memory"))
    return head + groups + b"\1\0\0" * (1 << 20)


def stream(description: bytes, pages: bytes = b"") -> bytes:
    """A migration stream of 1 TiB of RAM, with these records of pages and this description."""
    size = 1 << 40
    said = b"QEVM\0\0\0\3\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4" + struct.pack(">Q", size | 4) + b"\6pc.ram"
    said += struct.pack(">Q", size) + pages + struct.pack(">Q", 0x10)
    return said + b"\0\6" + struct.pack(">I", len(description)) + description


def far_pages() -> bytes:
    """A stream with pages of one byte, each a mebibyte from the next."""
    first = struct.pack(">Q", 2) + b"\6pc.ram\1"
    return stream(b'{"devices": []}', first + b"".join(struct.pack(">QB", at << 21 | 0x22, 1) for at in range(1 << 9)))


def nested() -> bytes:
    """A stream whose description is 100,000 lists within each other."""
    return stream(b'{"devices": ' + b"[" * 100_000)


def devices() -> bytes:
    """A stream with a description of 8 MiB, of devices without fields."""
    one = b'{"name":"","instance_id":0,"fields":[]},'
    return stream(b'{"devices":[' + one * 200_000 + b"0]}")


def flattened() -> bytes:
    """A flattened kdump of records without a byte, one for each 16 bytes of the file, and the header far away."""
    head = b"makedumpfile".ljust(0x1000, b"\0") + struct.pack(">qq", 1 << 60, 8) + b"KDUMP   "
    return (
        head
        + struct.pack(">qq", 0, 8)
        + b"KDUMP   "
        + struct.pack(">qq", 0, 0) * (1 << 18)
        + struct.pack(">qq", -1, -1)
    )


def descriptors() -> bytes:
    """A kdump of which every page is said to stand at the same place, and to unpack to far more than a page."""
    head = b"KDUMP   ".ljust(428, b"\0") + struct.pack("<5I", 0x1000, 1, 2, 0x8000, 0)
    pages = struct.pack("<QIIQ", 0x4000, 0x1000, 1, 0) * 0x8000
    packed = zlib.compress(bytes(1 << 24))
    return head.ljust(0x2000, b"\0") + b"\xff" * 0x2000 + packed.ljust(24 * 8, b"\0") + pages


def frames() -> bytes:
    """An AVML range of 2 TiB whose frames are of one byte each."""
    head = struct.pack("<4sIQQ8x", b"LMVA", 2, 0, 1 << 41)
    return head + b"\1\5\0\0crc.x" * (1 << 16)


LARGE = {
    "records.kdump": flattened,
    "descriptors.kdump": descriptors,
    "frames.avml": frames,
    "far-pages.migration": far_pages,
    "nested.migration": nested,
    "devices.migration": devices,
    "bitmap.dmp": bitmap,
    "ranges.dmp": ranges,
    "tags.vmss": tags,
}
