"""The description that ends QEMU's migration stream: how long the state of each device is, and a CPU's registers."""

from __future__ import annotations

from .. import budgets
from ..errors import ImageError
from ..machine.registers import Registers, Segment, TableRegister
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..machine.files import Data

_DESCRIPTION = 6  # the kind of this section, and its size in four bytes
_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_NAMES = {"eip": "rip", "eflags": "rflags", "cr[0]": "cr0", "cr[2]": "cr2", "cr[3]": "cr3", "cr[4]": "cr4",
          "efer": "efer", "star": "star"}  # fmt: skip
_SYSTEM = {"ldt": "ldtr", "tr": "tr", "gdt": "gdtr", "idt": "idtr"}


class Device(Record):
    """The state of one device: `size` bytes in the stream, whose fields are `described`."""

    name: bytes
    instance: int
    size: int
    described: list[Any]

    def registers(self, data: Data, at: int) -> Registers:
        """The registers of a CPU whose state begins at `at`; what the description does not name is not known."""
        values: dict[str, Any] = {}
        general: dict[str, int] = {}
        segments: list[Segment] = []
        for field in self.described:
            name, size, count = str(field.get("name")).removeprefix("env."), field["size"], field.get("array_len", 1)
            if name == "regs":
                found = [_number(data, at + size * number, size) for number in range(min(count, len(_GENERAL)))]
                general.update(zip(_GENERAL, found, strict=False))
            elif name == "segs":
                segments += [_segment(data, at + size * number, field) for number in range(min(count, len(_SEGMENTS)))]
            elif name in _SYSTEM:
                values[_SYSTEM[name]] = _segment(data, at, field)
            elif name in _NAMES and size <= 8:
                values[_NAMES[name]] = _number(data, at, size)
            at += size * count
        for name in ("gdtr", "idtr"):
            if name in values:
                values[name] = TableRegister(values[name].base, values[name].limit & 0xFFFF)
        values.update(zip(_SEGMENTS, segments, strict=False))
        return Registers(**values, rsp=general.get("rsp"), general=general)

    def configuration(self, data: Data, at: int) -> bytes:
        """The PCI configuration space of a device whose state begins at `at`; nothing where none is described."""
        for field in self.described:
            if field.get("name") == "parent_obj":
                for name, place, size in _parts(field, 0x1000):
                    if name == "config[0]":
                        return data[at + place : at + place + size]
            at += field["size"] * field.get("array_len", 1)
        return b""


def devices(path: str, data: Data) -> list[Device]:
    """All devices in the order of their sections; none when the stream ends without a description."""
    start = max(0, len(data) - budgets.STREAM_DESCRIPTION)
    tail = data[start : len(data)].rstrip(b"\0")
    at = tail.rfind(bytes([_DESCRIPTION, 0]))  # JSON has no such bytes; those of the size may be alike
    while at >= 0 and int.from_bytes(tail[at + 1 : at + 5], "big") != len(tail) - at - 5:
        at = tail.rfind(bytes([_DESCRIPTION, 0]), max(0, at - 8), at + 1)
    if at < 0:
        return []
    import json

    where = f"{path}: the description at {start + at:#x} of this migration stream"
    try:
        document = json.loads(tail[at + 5 :])
        return [
            Device(str(d["name"]).encode(), int(d["instance_id"]), _size(d), d["fields"]) for d in document["devices"]
        ]
    except RecursionError:
        raise ImageError(f"{where} is nested too deep") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ImageError(f"{where} is damaged: {str(error)[:60]!r}") from None


def text(name: bytes) -> str:
    """A name as it is shown."""
    return repr(name[:60].decode("ascii", "replace"))


def _size(described: dict[str, Any]) -> int:
    """The bytes of a device or a subsection, and of its own subsections, each with kind, name and version."""
    size = 0
    for field in described["fields"]:
        one, count = field["size"], field.get("array_len", 1)
        if not (type(one) is int and type(count) is int and 0 <= one < 1 << 32 and 0 <= count < 1 << 32):
            raise ValueError("a field's size is not a number")
        size += one * count
    for part in described.get("subsections", ()):
        size += 6 + len(str(part["vmsd_name"]).encode()) + _size(part)
    return size


def _number(data: Data, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + min(size, 8)], "big")


def _parts(field: dict[str, Any], most: int = 8) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of each field of a structure."""
    at = 0
    described = field.get("struct")
    for part in described.get("fields", ()) if isinstance(described, dict) else ():
        size = part.get("size") if isinstance(part, dict) else None
        if type(size) is not int or not 0 <= size <= most:
            return
        yield str(part.get("name")), at, size
        at += size


def _segment(data: Data, at: int, field: dict[str, Any]) -> Segment:
    found = {name: _number(data, at + place, size) for name, place, size in _parts(field)}
    limit = found.get("limit", 0) & 0xFFFF_FFFF
    return Segment(found.get("selector", 0) & 0xFFFF, found.get("base", 0), limit, found.get("flags"))
