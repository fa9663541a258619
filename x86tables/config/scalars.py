"""Scalars of a configuration: addresses, sizes, names."""

from __future__ import annotations

import re

from .compiled import Address
from .lines import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .lines import Path
    from .read import Source

# A dot alone is the assemblers' and the linker's own location counter, a dollar sign NASM's
_SYMBOL = re.compile(r"[.$]*[A-Za-z_][\w.$]*", re.ASCII)
_MOVED = re.compile(rf"({_SYMBOL.pattern})\s*([+-])\s*(0[xX][0-9a-fA-F]{{1,12}}|[0-9]{{1,15}})", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NUMBER = re.compile(r"0[xX][0-9a-fA-F_]{1,40}|[0-9][0-9_]{0,40}")
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|0|[1-9]\d{0,19})(?:\s*(B|KiB|MiB|GiB)?)", re.ASCII)
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Scalars:
    """Reads them; a UsageError of `source` names the key."""

    def __init__(self, source: Source) -> None:
        self.wrong = source.mistake

    def address(self, value: int | str, path: Path) -> Address:
        """A symbol, a symbol and an offset (below 2^50), a number, or a number as text."""
        if isinstance(value, str) and value[:1] in tuple("0123456789"):
            try:
                value = int(value, 16 if value[:2].lower() == "0x" else 10) if _NUMBER.fullmatch(value) else int("")
            except ValueError:
                message = f"{quoted(value)} is not an address: 0x..., decimal, or a symbol expected"
                raise self.wrong(path, message) from None
        if isinstance(value, int):
            if not 0 <= value < 1 << 64:
                raise self.wrong(path, f"{value:#x} is not an address of 64 bits")
            return Address(None, value)
        if moved := _MOVED.fullmatch(value):
            distance = int(moved[3], 16 if moved[3][:2].lower() == "0x" else 10)
            return Address(moved[1], distance if moved[2] == "+" else -distance)
        if not _SYMBOL.fullmatch(value):
            mangled = "; of Rust and C++ it is the mangled name, as nm shows it" if "::" in value else ""
            expected = f"a name of letters, digits, _, . and $ expected{mangled}"
            raise self.wrong(path, f"{quoted(value)} is not a symbol: {expected}")
        return Address(value)

    def place(self, value: int | str, path: Path) -> Address:
        """The address of a table: a symbol that is its own, or a number."""
        address = self.address(value, path)
        if address.symbol is not None and address.offset:
            raise self.wrong(path, f"a table has a symbol of its own, or an address: {quoted(value)} is neither")
        return address

    def size(self, value: int | str, path: Path) -> int:
        """Bytes, from 1 to below 2^48."""
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        number = int(match[1], 0) * _UNITS[match[2]] if match else value
        if not isinstance(number, int) or not 0 < number < 1 << 48:
            raise self.wrong(path, f'{quoted(value)} is not a size: a number of bytes, or "20 KiB" expected')
        return number

    def name(self, value: str, path: Path) -> str:
        """What constants are made of."""
        if not _NAME.fullmatch(value):
            raise self.wrong(path, f"{quoted(value)} is not a name of a constant: letters, digits and _ expected")
        return value
