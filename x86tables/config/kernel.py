"""A configuration beside a linked kernel: where the symbols are, and which memory the kernel's segments map."""

from __future__ import annotations

from ..elf import LOAD, Elf, is_elf
from ..machine.files import load as load_file
from ..machine.synthetic import Mapping
from ..readers import read_symbols
from .addresses import lookup
from .compiler import compile_config
from .machines import image
from .read import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.image import Snapshot
    from .compiled import CompiledTables, Lookup


def segments(path: str) -> list[Mapping]:
    """What an ELF file's program headers map, by linear address; nothing for a System.map."""
    data = load_file(path)
    if not is_elf(data):
        return []
    return [
        Mapping("kernel", header.vaddr, header.memsz, header.permissions)
        for header in Elf(path, data).segments(LOAD)
        if header.memsz
    ]


def resolve(tables: CompiledTables, kernel: str | None) -> tuple[Lookup, list[Mapping]]:
    """Where the symbols are, and the segments: of a linked kernel or a System.map, else of the configuration alone."""
    if kernel is None:
        return lookup(tables), []
    return lookup(tables, read_symbols(kernel), kernel), segments(kernel)


def open_config(path: str, kernel: str | None = None) -> tuple[CompiledTables, Snapshot]:
    """A TOML file as an Image to check, trace or prove."""
    tables = compile_config(*read(path))
    return tables, image(tables, *resolve(tables, kernel))
