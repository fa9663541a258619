"""A kernel's tables as declared in TOML or Python: read, checked, and made into tables with symbols or addresses.

    tables = config.load("kernel.toml")  # or config.compile(config.Config(...))
    find, segments = config.resolve(tables, "kernel.elf")  # where the symbols are; None: where [symbols] says
    tables.idt.build(find)  # bytes
    config.image(tables, find, segments)  # machines, for the checks

Until then every address is a symbol, and the emitters need no more.
"""

from __future__ import annotations

try:
    import msgspec
except ImportError:
    from ..errors import UsageError

    raise UsageError("a configuration needs the package msgspec: pip install msgspec") from None

from .addresses import lookup
from .compiled import Address, CompiledTables
from .compiler import compile_config
from .kernel import resolve
from .keys import (
    CheckConfig,
    Config,
    CpuConfig,
    GateConfig,
    GdtConfig,
    MachineConfig,
    MemoryConfig,
    SegmentConfig,
    StackConfig,
    Strided,
    StubsConfig,
    SyscallConfig,
    TablesConfig,
)
from .machines import image
from .read import Source, decode, read

__all__ = [
    "Address",
    "CheckConfig",
    "CompiledTables",
    "Config",
    "CpuConfig",
    "GateConfig",
    "GdtConfig",
    "MachineConfig",
    "MemoryConfig",
    "SegmentConfig",
    "Source",
    "StackConfig",
    "Strided",
    "StubsConfig",
    "SyscallConfig",
    "TablesConfig",
    "compile",
    "image",
    "load",
    "lookup",
    "resolve",
]


def load(path: str) -> CompiledTables:
    """The tables that a TOML file declares. UsageError names file, line and key of a mistake, and what is expected."""
    return compile_config(*read(path))


def compile(config: Config) -> CompiledTables:
    """The tables of a configuration written in Python, validated as a file is."""
    source = Source()
    return compile_config(decode(msgspec.to_builtins(config), source), source)
