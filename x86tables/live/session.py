"""The machine that gdb is connected to, asked from inside gdb; its symbols are gdb's own."""

from __future__ import annotations

import re

from ..errors import ImageError, NotThere, UsageError
from ..machine.symbols import Symbols, printable
from . import pages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..readers import Contents

# `info symbol`: `main in section .text`, `main + 18 in section .text of /boot/vmlinux`
_NAMED = re.compile(r"^(\S+)(?: \+ (\d+))? in section ")
_NAME = re.compile(r"[\w.$@]+")


def contents(path: str) -> Contents:
    """All registers and the physical memory, by QEMU's monitor, to which `monitor` passes lines on."""
    gdb = _gdb(path)

    def text(line: str) -> str:
        try:
            return str(gdb.execute(f"monitor {line}", to_string=True)).replace("\r", "")
        except gdb.error as error:
            raise ImageError(f"{path}: gdb's `monitor {line}` fails: {error}; is it connected to QEMU?") from None

    return pages.contents(path, text).replace(symbols=GdbSymbols(gdb))


def _gdb(path: str) -> Any:
    try:
        import gdb
    except ImportError:
        raise UsageError(f"{path}: only inside gdb; elsewhere gdb:HOST:PORT") from None
    return gdb


class GdbSymbols(Symbols):
    """Names as gdb knows them, of all files that it has loaded, at the addresses where it has loaded them."""

    def __init__(self, gdb: Any) -> None:
        super().__init__()
        self._gdb = gdb

    def __len__(self) -> int:
        return len(self._gdb.objfiles())

    def name(self, address: int, reach: int = 0x10000) -> str | None:
        """`name` or `name+0x12`, as `info symbol` says."""
        found = _NAMED.match(self._gdb.execute(f"info symbol {address:#x}", to_string=True))
        distance = int(found[2] or 0) if found else 0
        if found is None or distance > reach:
            return None
        return printable(found[1]) + (f"+{distance:#x}" if distance else "")

    @property
    def lined(self) -> bool:
        """Whether there may be source lines."""
        return len(self) > 0

    def line(self, address: int) -> str | None:
        """`file.c:12`, where gdb has it."""
        place = self._gdb.find_pc_line(address)
        return f"{place.symtab.filename}:{place.line}" if place.symtab is not None and place.line else None

    def address(self, name: str) -> int:
        """The address of a symbol; NotThere when gdb knows none."""
        if not _NAME.fullmatch(name):
            raise NotThere(f"no symbol {name!r}")
        try:
            return int(self._gdb.parse_and_eval(f"(unsigned long) &'{name}'"))
        except self._gdb.error:
            raise NotThere(f"no symbol {name!r}") from None

    def has(self, name: str) -> bool:
        """Whether gdb knows it."""
        try:
            self.address(name)
        except NotThere:
            return False
        return True
