"""VMware's state files (.vmss, .vmsn): registers in tags; memory in the .vmem file beside it, or in older ones inside.

Groups of tags, each a name, indices and a value; described by crash's vmware_vmss.h and the layers of Volatility.
"""

from __future__ import annotations

import os
import struct

from .. import budgets
from ..errors import ImageError
from ..machine.files import load
from ..machine.memory import PAGE, Memory
from ..machine.registers import Registers, TableRegister
from . import Contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    from ..machine.files import Data
    from ..machine.image import OpenOptions
    from ..machine.memory import Piece

    Tag: TypeAlias = tuple[str, tuple[int, ...]]  # name and indices

MAGICS = (b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xba\xd2\xba")
_HEADER, _GROUP, _BLOCK = struct.Struct("<4sII"), struct.Struct("<64sQQ"), struct.Struct("<QQH")
_COMPRESSED, _BLOCKS = 62, (62, 63)  # sizes of a value that say that its own size follows
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))


def matches(data: Data) -> bool:
    """A state file whose sizes have 64 bits."""
    return data[:4] in MAGICS


def read(path: str, data: Data, options: OpenOptions) -> Contents:
    """The memory's regions, of a file of its own or of this one, and the registers in the group `cpu`."""
    groups = _groups(path, data)
    for name in ("cpu", "memory"):
        if name not in groups:
            raise ImageError(f"{path}: this state file has no group {name!r}: it is of a machine that was not running")
    tags = {tag: data[at : at + size] for tag, at, size, _ in _tags(path, data, groups["cpu"]) if size <= PAGE}
    regions: dict[Tag, int] = {}
    inside: tuple[int, int] | None = None
    for tag, at, size, kind in _tags(path, data, groups["memory"]):
        if tag[0] == "Memory":
            if kind == _COMPRESSED:
                raise ImageError(f"{path}: the memory at offset {at:#x} is compressed: suspend the machine again")
            inside = inside or (at, size)
        elif size <= 8:
            regions[tag] = int.from_bytes(data[at : at + size], "little")
    cpus = _number(tags, ("cpu:numVCPUs", ()), 1)
    if not 1 <= cpus <= budgets.CPUS:
        raise ImageError(f"{path}: {cpus} CPUs: 1 to {budgets.CPUS} can be read")
    remarks: list[str] = []
    memory = _memory(path, data, inside, regions, remarks)
    registers = tuple(_registers(tags, cpu) for cpu in range(cpus))
    return Contents(
        memory, registers, remarks=tuple(remarks), lacks="this state file does not say where all tables are"
    )


def _groups(path: str, data: Data) -> dict[str, int]:
    """Where the tags of each group begin."""
    _, _, count = _HEADER.unpack(data[: _HEADER.size].ljust(_HEADER.size, b"\0"))
    end = _HEADER.size + count * _GROUP.size
    if count > budgets.VMWARE_GROUPS or end > len(data):
        raise ImageError(
            f"{path}: {count} groups of tags in {len(data):#x} bytes: the file is damaged or cut off, or not VMware's"
        )
    found: dict[str, int] = {}
    for at in range(_HEADER.size, end, _GROUP.size):
        name, place, _ = _GROUP.unpack(data[at : at + _GROUP.size])
        found.setdefault(name.partition(b"\0")[0].decode("ascii", "replace"), place)
    return found


def _tags(path: str, data: Data, at: int) -> Iterator[tuple[Tag, int, int, int]]:
    """Each tag of a group, where its value is, the size of that, and the size as the tag's first byte has it."""
    for _ in range(budgets.VMWARE_TAGS):
        head = data[at : at + 2]
        if head == b"\0\0":
            return
        if len(head) < 2:
            raise ImageError(f"{path}: the file is damaged or cut off: a tag at offset {at:#x} is beyond its end")
        kind, indices = head[0] & 0x3F, head[0] >> 6
        place = at + 2 + head[1] + 4 * indices
        tag = data[at + 2 : place].ljust(place - at - 2, b"\0")
        name = tag[: head[1]].decode("ascii", "replace")
        size = kind
        if kind in _BLOCKS:
            size, _, padding = _BLOCK.unpack(data[place : place + _BLOCK.size].ljust(_BLOCK.size, b"\0"))
            place += _BLOCK.size + padding
        if place + size > len(data):
            raise ImageError(
                f"{path}: the tag {name!r} at offset {at:#x} claims {size:#x} bytes from {place:#x} on, beyond the "
                f"file's end at {len(data):#x}: it is damaged or cut off"
            )
        yield (name, struct.unpack_from(f"<{indices}I", tag, head[1])), place, size, kind
        at = place + size
    raise ImageError(f"{path}: more than {budgets.VMWARE_TAGS} tags in one group are not read")


def _number(tags: dict[Tag, bytes], tag: Tag, default: int | None = None) -> Any:
    return int.from_bytes(tags[tag], "little") if tag in tags else default


def _registers(tags: dict[Tag, bytes], cpu: int) -> Registers:
    """What the tags say of one CPU."""

    def one(name: str) -> int | None:
        found: int | None = _number(tags, (name, (cpu,)))
        return found

    def control(number: int) -> int | None:
        whole = tags.get(("CR64", (cpu,)), b"")[8 * number : 8 * number + 8]
        if len(whole) == 8:
            return int.from_bytes(whole, "little")
        found: int | None = _number(tags, ("CR64", (cpu, number)), _number(tags, ("CR", (cpu, number))))
        return found

    def table(name: str) -> TableRegister | None:
        whole = tags.get((name, (cpu,)), b"")
        if len(whole) != 10:  # then limit and the halves of the base stand apart
            parts = [tags.get((name, (cpu, number)), b"") for number in range(3)]
            whole = b"".join(parts) if [len(part) for part in parts] == [2, 4, 4] else b""
        if not whole:
            return None
        return TableRegister(int.from_bytes(whole[2:], "little"), int.from_bytes(whole[:2], "little"))

    general = {name: value for name in _GENERAL if (value := one(name)) is not None}
    rflags = one("eflags")
    return Registers(
        rip=one("rip"), rsp=general.get("rsp"), rflags=rflags if rflags is not None else one("EFLAGS"),
        cr0=control(0), cr2=control(2), cr3=control(3), cr4=control(4), gdtr=table("GDTR"), idtr=table("IDTR"),
        general=general,
    )  # fmt: skip


def _memory(
    path: str, data: Data, inside: tuple[int, int] | None, regions: dict[Tag, int], remarks: list[str]
) -> Memory:
    """Memory by its regions; the state file's own, or that of the .vmem file beside it."""
    start, size = inside or (0, 0)
    source: Data = data
    name = path
    if not size:
        name = os.path.splitext(path)[0] + ".vmem"
        if not os.path.exists(name):
            raise ImageError(f"{path}: the memory is not in this state file, and {name} is not beside it")
        source = load(name)
        start, size = 0, len(source)
    pieces: list[Piece] = []
    count, missing = regions.get(("regionsCount", ()), 0), 0
    if count > budgets.RANGES:
        raise ImageError(f"{path}: {count} regions of memory: more than {budgets.RANGES} are not read")
    for number in range(count):
        where = [regions.get((tag, (number,))) for tag in ("regionPPN", "regionPageNum", "regionSize")]
        if None in where:
            raise ImageError(f"{path}: of {count} regions of memory, region {number} is not described")
        address, offset, length = (PAGE * (known or 0) for known in where)
        held = max(0, min(length, size - offset))
        missing += length - held
        if held:
            pieces.append((address, held, source, start + offset))
    if not count:
        pieces = [(0, size, source, start)]
    if missing:
        remarks.append(f"{name} is cut off: {missing:#x} bytes of memory that {path} describes are not in it")
    if not pieces:
        raise ImageError(f"{path}: no memory in {name}")
    return Memory(pieces)
