"""A kernel's tables as declared in TOML or Python: read, checked, and made into tables with symbols or addresses.

    tables = config.load("kernel.toml")  # or config.declare(config.Config(...))
    find, segments = config.beside(tables, "kernel.elf")  # where the symbols are; None: where [symbols] says
    tables.idt.build(find)  # bytes
    config.image(tables, find, segments)  # machines, for the checks

Until then every address is a symbol, and the emitters need no more.
"""

from __future__ import annotations

try:
    import msgspec
except ImportError:
    from ..errors import UsageError

    raise UsageError("a configuration needs the package msgspec: pip install 'x86tables[config]'") from None

from .compile import declare as _declare
from .kernel import beside
from .keys import Check, Config, Cpu, Gate, Gdt, Machine, Memory, Segment, Stack, Strided, Stubs, Syscall
from .keys import Tables as TableNames
from .layout import image, lookup
from .read import Source, decode, read
from .tables import Address, Tables

__all__ = [
    "Address",
    "Check",
    "Config",
    "Cpu",
    "Gate",
    "Gdt",
    "Machine",
    "Memory",
    "Segment",
    "Source",
    "Stack",
    "Strided",
    "Stubs",
    "Syscall",
    "TableNames",
    "Tables",
    "beside",
    "declare",
    "image",
    "load",
    "lookup",
]


def load(path: str) -> Tables:
    """The tables that a TOML file declares. UsageError names file, line and key of a mistake, and what is right."""
    return _declare(*read(path))


def declare(config: Config) -> Tables:
    """The tables of a configuration written in Python, validated as a file is."""
    source = Source()
    return _declare(decode(msgspec.to_builtins(config), source), source)
