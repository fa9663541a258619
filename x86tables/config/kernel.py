"""A configuration beside a linked kernel: where the symbols are, and which memory the kernel's segments map."""

from __future__ import annotations

from ..machine.files import load as load_file
from ..machine.synthetic import Mapping
from ..readers import read_symbols
from ..readers.elf import guarded, matches, open_elf
from .addresses import lookup
from .compiler import compile_config
from .machines import image
from .read import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.image import Image
    from .compiled import CompiledTables, Lookup


def segments(path: str) -> list[Mapping]:
    """What an ELF file's program headers map, by linear address; nothing for a System.map."""
    data = load_file(path)
    if not matches(data):
        return []
    elf = open_elf(path, data)
    found = []
    for header in guarded(path, f"program headers at offset {elf['e_phoff']:#x}", elf.iter_segments("PT_LOAD")):
        letters = "".join(letter for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if header["p_flags"] & bit)
        if header["p_memsz"]:
            found.append(Mapping("kernel", header["p_vaddr"], header["p_memsz"], letters))
    return found


def resolve(tables: CompiledTables, kernel: str | None) -> tuple[Lookup, list[Mapping]]:
    """Where the symbols are, and the segments: of a linked kernel or a System.map, else of the configuration alone."""
    if kernel is None:
        return lookup(tables), []
    return lookup(tables, read_symbols(kernel), kernel), segments(kernel)


def open_config(path: str, kernel: str | None = None) -> tuple[CompiledTables, Image]:
    """A TOML file as an Image to check, trace or prove."""
    tables = compile_config(*read(path))
    return tables, image(tables, *resolve(tables, kernel))
