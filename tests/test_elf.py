"""ELF files as pyelftools reads them, which is somebody else's reader: headers, sections, symbols, relocations."""

import lzma
import struct
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_E_TYPE, ENUM_P_TYPE_BASE, ENUM_SH_TYPE_BASE
from elftools.elf.relocation import RelocationSection, RelrRelocationSection
from elftools.elf.sections import SymbolTableSection

from x86tables.elf import (
    DYN,
    DYNAMIC,
    LOAD,
    MANY,
    NOBITS,
    NOTE,
    RELA,
    RELOCATIONS,
    RELR,
    Elf,
    ProgramHeader,
    header,
    section_zero,
)
from x86tables.errors import ImageError

LOGS = Path(__file__).parent / "logs"
SOURCE = """
static int x; int y = 5; int *p = &y, *q = &x, *r[70] = {&y, &y, [69] = &x};
__attribute__((weak)) void \u00e9t\u00e9(void) { x++; }
void _start(void) { \u00e9t\u00e9(); y += *p + *q + *r[0]; }
"""
BUILDS = {
    "exec": "-m64 -no-pie -Wl,--emit-relocs",
    "pie": "-m64 -fpie -pie",
    "relr": "-m64 -fpie -pie -Wl,-z,pack-relative-relocs",
    "packed": "-m64 -no-pie -g -gz=zlib",
    "32": "-m64 -no-pie",
    "many": "-m64 -no-pie -ffunction-sections -fdata-sections",
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """A small program, linked in several ways; "32" is one copied to ELF32."""

    def make(name: str) -> bytes:
        folder = tmp_path_factory.mktemp(name)
        (folder / "a.c").write_text(SOURCE)
        words = [
            "gcc",
            *BUILDS[name].split(),
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
        ]
        subprocess.run([*words, "-o", "a.elf", "a.c"], cwd=folder, check=True)
        if name == "32":
            subprocess.run(["objcopy", "-O", "elf32-i386", "a.elf"], cwd=folder, check=True)
        return (folder / "a.elf").read_bytes()

    return make


def agree(data: bytes) -> None:
    """Everything that both read is the same."""
    ours, theirs = Elf("x", data), ELFFile(BytesIO(data))
    assert (ours.bits, ours.type) == (theirs.elfclass, ENUM_E_TYPE[theirs["e_type"]])
    fields: tuple[str, ...]
    segments = [segment.header for segment in theirs.iter_segments()]
    for kind, name in ((LOAD, "PT_LOAD"), (NOTE, "PT_NOTE"), (DYNAMIC, "PT_DYNAMIC")):
        assert ENUM_P_TYPE_BASE[name] == kind
        fields = ("p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_align")
        expected = [tuple(head[field] for field in fields) for head in segments if head["p_type"] == name]
        assert [tuple(segment)[1:] for segment in ours.segments(kind)] == expected
    assert len(ours.sections) == theirs.num_sections()
    for mine, section in zip(ours.sections, theirs.iter_sections(), strict=True):
        fields = ("sh_flags", "sh_addr", "sh_offset", "sh_size", "sh_link", "sh_info")
        assert (mine.name, *tuple(mine)[2:]) == (section.name, *(section[field] for field in fields))
        assert mine.type == ENUM_SH_TYPE_BASE.get(section["sh_type"], section["sh_type"])
        if mine.type != NOBITS:
            assert ours.contents(mine) == section.data()
    expected_symbols = [
        (symbol.name, symbol["st_value"], symbol["st_size"])
        for section in theirs.iter_sections()
        if isinstance(section, SymbolTableSection)
        for symbol in section.iter_symbols()
        if symbol.entry["st_name"] and symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["type"] != "STT_FILE"
    ]
    assert [row[:3] for row in ours.symbols()] == expected_symbols
    for mine, section in zip(ours.sections, theirs.iter_sections(), strict=True):
        if mine.type in (RELOCATIONS, RELA, RELR):
            assert isinstance(section, RelocationSection | RelrRelocationSection)
            expected_rows = [
                (row["r_offset"], row["r_info_type"] if "r_info" in row.entry else 8)
                for row in section.iter_relocations()
            ]
            assert list(ours.relocations(mine.type, mine.offset, mine.size)) == expected_rows


@pytest.mark.needs("gcc", "objcopy")
@pytest.mark.parametrize("name", BUILDS)
def test_what_gcc_links(build: Callable[[str], bytes], name: str) -> None:
    data = build(name)
    agree(data)
    assert "\u00e9t\u00e9" in {row[0] for row in Elf("x", data).symbols()}


def test_a_kernel_of_nasm() -> None:
    agree(lzma.decompress((LOGS / "triple.elf.xz").read_bytes()))


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", ["pie", "relr"])
def test_relocations_without_sections(build: Callable[[str], bytes], name: str) -> None:
    """The dynamic segment names the same tables as the sections."""
    data = bytearray(build(name))
    whole = Elf("x", bytes(data))
    tables = {(s.type, s.offset, s.size) for s in whole.sections if s.type in (RELOCATIONS, RELA, RELR) and s.size}
    struct.pack_into("<Q", data, 40, 0)  # e_shoff
    bare = Elf("x", bytes(data))
    assert bare.sections == () and list(bare.symbols()) == []
    assert bare.type == DYN and set(bare.dynamic_relocations()) == tables and tables


@pytest.mark.needs("gcc")
def test_extents(build: Callable[[str], bytes]) -> None:
    """Headers and sections, each where it is; the address is that of what is loaded."""
    elf = Elf("x", build("exec"))
    known = {what: (held, address) for held, what, address in elf.extents()}
    assert known["the ELF header"] == (range(64), None)
    (text,) = (section for section in elf.sections if section.name == ".text")
    assert known["section .text"] == (range(text.offset, text.offset + text.size), text.address)
    assert known["section .symtab"][1] is None and "section .bss" not in known
    assert known["the section headers"][0].stop <= len(elf.data)


@pytest.mark.parametrize("count", [1, MANY - 1, MANY, MANY + 1])
def test_headers_that_are_written_can_be_read(count: int) -> None:
    heads = [ProgramHeader(LOAD, 6, number, 2, 3, 4, 5, 6) for number in range(count)]
    data = header(2, count) + b"".join(head.packed() for head in heads) + section_zero(count)
    elf = Elf("x", data)
    assert list(elf.segments(LOAD)) == heads
    assert (elf.segment_count, heads[0].permissions) == (count, "rw")
    assert ELFFile(BytesIO(data)).num_segments() == count


@pytest.mark.parametrize("cut", [0, 3, 4, 15, 63])
def test_no_header(cut: int) -> None:
    with pytest.raises(ImageError, match=r"^x: (not an ELF file|cut off within the ELF header)"):
        Elf("x", header(2, 0)[:cut])


@pytest.mark.needs("gcc")
def test_sections_beyond_the_end(build: Callable[[str], bytes]) -> None:
    data = build("exec")
    assert struct.unpack_from("<Q", data, 40)[0] > 0x1000
    with pytest.raises(
        ImageError, match=r"^x: damaged or cut off: the section headers at offset 0x.*the file ends at 0x1000"
    ):
        _ = Elf("x", data[:0x1000]).sections
