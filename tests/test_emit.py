"""Every form of the tables, built with its own tools: the linked bytes are the tables at the linker's addresses."""

import json
import re
import sys
from pathlib import Path

import pytest
from cli import output, refused
from linking import ASSEMBLERS, Linked, outside, run, written

from x86tables import Gate, Layout, SegmentDescriptor, SystemDescriptor, Tss, UsageError, config
from x86tables.config.compiled import CompiledTables
from x86tables.emit import emit, members, names
from x86tables.tables.vectors import EXCEPTIONS

EXAMPLES = Path(__file__).parent.parent / "examples"
# Everything at once: addresses as numbers and as symbols, tops, strides, tables with names of their own, a short IDT
MIXED = """
[gdt]
segments = ["kernel_code", "null", "kernel_data", "tss",
    { name = "low", kind = "code32", base = 0x12345678, limit = 9 }]
[cpu]
tss = "my_tss"
rsp0 = { top = "kernel_stack_end - 8" }
rsp2 = { bottom = 0xffffffff90000000, size = 0x3000 }
ist1 = { name = "double_fault", bottom = "df_stack", size = "20 KiB" }
ist7 = { top = 0xfffffffffffffff0 }
[idt]
"0..20" = "exception_{vector}"
"#DF" = { handler = "exception_8", ist = "double_fault" }
"#PF" = { handler = 0xffffffff81234567, ist = "ist7", type = "trap" }
"32..40" = { handler = { base = "irqs", stride = 32 }, segment = "low", dpl = 3 }
49 = "irqs + 0x140"
50 = { handler = "by_hand-0x10", stub = false }
[tables]
gdt = "my_gdt"
idt = "my_idt"
gdtr = "my_gdtr"
idtr = "my_idtr"
gates = 51
[stubs]
common = "all_of_them"
load = "load_my_tables"
"""
CONFIGS = ["double_fault", "two_cpus", "mixed"]


@pytest.fixture(scope="module", params=CONFIGS)
def tables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CompiledTables:
    """A configuration without addresses of its own."""
    text = MIXED if request.param == "mixed" else (EXAMPLES / f"{request.param}.toml").read_text()
    path = tmp_path_factory.mktemp("config") / "kernel.toml"
    path.write_text(text.partition("[symbols]")[0])
    return config.load(str(path))


def test_words_cover_every_byte_once() -> None:
    layouts: list[type[Layout]] = [Gate, SegmentDescriptor, SystemDescriptor, Tss]
    for layout in layouts:
        words = members(layout)
        assert [m.offset for m in words] == [sum(m.size for m in words[:n]) for n in range(len(words))]
        assert sum(m.size for m in words) == layout.size
        assert len({m.name for m in words}) == len(words)
    cut = [(m.name, m.offset, m.size, m.shift) for m in members(Gate) if m.field and m.field.name == "offset"]
    assert cut == [("offset_0", 0, 2, 0), ("offset_16", 6, 2, 16), ("offset_32", 8, 4, 32)]


SCRIPT = (
    "SECTIONS { . = 0xffffffff80123000; .text : { *(.text) } . = ALIGN(4096); .data : { *(.data) } .bss : { *(.bss) } }"
)


@pytest.mark.needs("as", "nasm")
@pytest.mark.parametrize("how", ["command line", "linker script"])
@pytest.mark.parametrize("assembler", ASSEMBLERS)
def test_assembled_and_linked_once(assembler: str, how: str, tables: CompiledTables, tmp_path: Path) -> None:
    """A kernel in the upper half needs one ordinary link: nothing is left to patch or to fill in."""
    written(tmp_path, tables, assembler, "ld", "stubs")
    (tmp_path / "outside.s").write_text(outside(tables, handlers=False))
    (tmp_path / "kernel.lds").write_text(SCRIPT)
    run(tmp_path, "as", "-o", "outside.o", "outside.s")
    for words in ASSEMBLERS[assembler]:
        run(tmp_path, *words)
    place = ["-T", "kernel.lds"] if how == "linker script" else ["-Ttext-segment=0xffffffff80000000"]
    objects = ["tables.o", "stubs.o", "outside.o"]
    run(tmp_path, "ld", "-static", "-o", "kernel", "-e", "0", *place, *objects, "tables.ld")
    linked = Linked(tmp_path / "kernel")
    linked.check(tables)
    check_stubs(linked, tables)
    check_kinds(linked, tables)


def check_stubs(linked: Linked, tables: CompiledTables) -> None:
    """At every handler stands the code that makes its frame like all others."""
    entries = [entry for entry in tables.handlers if entry.stub and entry.address.symbol]
    assert entries
    for entry in entries:
        at = entry.address.at(linked.symbols.__getitem__)
        code = b"" if entry.vector < 32 and EXCEPTIONS[entry.vector].error_code else b"\x6a\0"
        vector = entry.vector
        code += bytes((0x6A, vector)) if vector < 128 else b"\x68" + vector.to_bytes(4, "little")
        found = linked.read(at, len(code) + 5)
        assert found[: len(code)] == code
        at += len(code)
        found = found[len(code) :]
        size = 5 if found[0] == 0xE9 else 2
        assert found[0] in (0xE9, 0xEB)
        target = at + size + int.from_bytes(found[1:size], "little", signed=True)
        assert target % (1 << 64) == linked.symbols[tables.config.stubs.common]


def check_kinds(linked: Linked, tables: CompiledTables) -> None:
    """Debuggers and nm see objects and functions of their size; each function ends where padding or the next begins."""
    for table in tables.all:
        assert linked.kinds[table.name] == ("STT_OBJECT", table.size)
    entries = [(entry, entry.address.at(linked.symbols.__getitem__)) for entry in tables.handlers if entry.stub]
    functions = {entry.address.symbol for entry, _ in entries if entry.address.symbol}
    for name in functions | {tables.config.stubs.load}:
        kind, size = linked.kinds[name]
        start = linked.symbols[name]
        assert kind == "STT_FUNC"
        last = linked.read(start + size - 5, 5)
        if name == tables.config.stubs.load:
            assert last[-1] == 0xC3
            continue
        inside = [at for entry, at in entries if entry.address.symbol == name]
        assert max(inside) < start + size <= max(inside) + 12
        jump = 5 if last[0] == 0xE9 else 2
        target = start + size + int.from_bytes(last[6 - jump :], "little", signed=True)
        assert target % (1 << 64) == linked.symbols[tables.config.stubs.common]


@pytest.mark.needs("as", "nasm", "gcc", "/usr/include/stdint.h")
@pytest.mark.parametrize("assembler", ASSEMBLERS)
def test_the_header_alone(assembler: str, tables: CompiledTables, tmp_path: Path) -> None:
    """C beside assembled tables: declared, named and complete after the link, without anything to fill in."""
    written(tmp_path, tables, assembler, "ld", "c-header")
    assert "fill_tables" not in (tmp_path / "tables.h").read_text()
    assert not (tmp_path / "tables.c").exists()
    (tmp_path / "outside.s").write_text(outside(tables, handlers=True))
    prints = " && ".join(f"fwrite(&{table.name}, sizeof {table.name}, 1, stdout)" for table in tables.all)
    (tmp_path / "main.c").write_text((PRINT % prints).replace("fill_tables();", ""))
    run(tmp_path, *ASSEMBLERS[assembler][0])
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-no-pie"]
    run(tmp_path, "gcc", *flags, "-o", "program", "main.c", "tables.o", "outside.s", "tables.ld")
    Linked(tmp_path / "program").check(tables, printed(tmp_path, tables))


def test_one_header_only(tmp_path: Path) -> None:
    """That of c declares what fills in its tables, c-header's does not: one would overwrite the other."""
    wrong = refused("build", EXAMPLES / "double_fault.toml", "-o", tmp_path, "--emit", "c,c-header")
    assert wrong == "--emit c-header: another tables.h is written already: leave out one of the two"
    assert not list(tmp_path.iterdir())
    output("build", EXAMPLES / "double_fault.toml", "-o", tmp_path, "--emit", "c,c")


@pytest.mark.needs("as", "nasm", "objdump")
def test_both_assemblers_load_in_the_same_order(tables: CompiledTables, tmp_path: Path) -> None:
    """LGDT, CS by a far return, SS and the other segments, TR, IDTR; NASM's code is the same byte for byte."""
    written(tmp_path, tables, "stubs")
    run(tmp_path, *ASSEMBLERS["gas"][1])
    load = tables.config.stubs.load
    text = run(tmp_path, "objdump", "-dr", "--no-show-raw-insn", f"--disassemble={load}", "stubs.o").decode()
    lines = [line.split("\t")[1].split() for line in text.splitlines() if "\t" in line and "R_X86" not in line]
    loads = [words[0] + words[-1].rpartition(",")[2] * (words[0] == "mov") for words in lines]
    wanted = ("lgdt", "lretq", "rex.W", "mov%ss", "mov%ds", "mov%es", "mov%fs", "mov%gs", "ltr", "lidt", "ret")
    order = [word for word in loads if word in wanted]
    assert [word.replace("rex.W", "lretq") for word in order] == [
        "lgdt", "lretq", "mov%ss", "mov%ds", "mov%es", "mov%fs", "mov%gs", "ltr", "lidt", "ret",
    ]  # fmt: skip
    code = Linked(tmp_path / "stubs.o").pieces[0][1]
    run(tmp_path, *ASSEMBLERS["nasm"][1])
    assert Linked(tmp_path / "stubs.o").pieces[0][1] == code


PRINT = """
#include <stdio.h>
#include "tables.h"
int main(void) {
    fill_tables();
    return !(%s);
}
"""


@pytest.mark.needs("gcc", "as", "/usr/include/stdint.h")
@pytest.mark.parametrize("standard", ["c11", "gnu17"])
def test_c(standard: str, tables: CompiledTables, tmp_path: Path) -> None:
    """A program that fills its tables and prints them; warnings are errors."""
    written(tmp_path, tables, "c")
    (tmp_path / "outside.s").write_text(outside(tables, handlers=True))
    prints = " && ".join(f"fwrite(&{table.name}, sizeof {table.name}, 1, stdout)" for table in tables.all)
    (tmp_path / "main.c").write_text(PRINT % prints)
    warnings = [f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    run(tmp_path, "gcc", *warnings, "-no-pie", "-o", "program", "main.c", "tables.c", "outside.s")
    Linked(tmp_path / "program").check(tables, printed(tmp_path, tables))
    # in a kernel of the upper half, without a library
    run(tmp_path, "gcc", *warnings, "-ffreestanding", "-fno-pic", "-mcmodel=kernel", "-O2", "-c", "tables.c")


def printed(folder: Path, tables: CompiledTables) -> dict[str, bytes]:
    data = run(folder, "./program")
    contents = {}
    for table in tables.all:
        contents[table.name], data = data[: table.size], data[table.size :]
    assert not data
    return contents


MAIN = """
mod tables;
use std::io::Write;

fn print<T>(table: *const T) {
    let size = std::mem::size_of::<T>();
    std::io::stdout().write_all(unsafe { std::slice::from_raw_parts(table as *const u8, size) }).unwrap();
}

fn main() {
    unsafe {
        tables::fill_tables();
%s
    }
}
"""


@pytest.mark.needs("rustc", "as", "gcc")
@pytest.mark.parametrize("edition", ["2018", "2021", "2024"])
def test_rust(edition: str, tables: CompiledTables, tmp_path: Path) -> None:
    """A program that fills its tables and prints them; warnings are errors."""
    if edition == "2024":
        written(tmp_path, tables, "rust-2024")
        unsafe = r'#\[unsafe\(export_name = "\w+"\)\]|\bunsafe extern "C" \{'
        assert len(re.findall(unsafe, (tmp_path / "tables.rs").read_text())) == 3
        if int(run(tmp_path, "rustc", "--version").split(b".")[1]) < 85:
            return  # Debian 12's is older than that edition
    else:
        written(tmp_path, tables, "rust")
    (tmp_path / "outside.s").write_text(outside(tables, handlers=True))
    run(tmp_path, "as", "-o", "outside.o", "outside.s")
    places = {tables.gdt.name: "GDT.0", tables.idt.name: "IDT.0"}
    prints = [f"        print(std::ptr::addr_of!(tables::{places.get(t.name, t.name)}));" for t in tables.all]
    (tmp_path / "main.rs").write_text(MAIN % "\n".join(prints))
    options = ["--edition", edition, "-D", "warnings", "-C", "relocation-model=static", "-C", "link-arg=outside.o"]
    run(tmp_path, "rustc", *options, "-o", "program", "main.rs")
    Linked(tmp_path / "program").check(tables, printed(tmp_path, tables))


@pytest.mark.needs("gcc", "as", "nasm", "rustc", "/usr/include/stdint.h")
def test_constants_are_the_same_everywhere(tables: CompiledTables, tmp_path: Path) -> None:
    """Selectors, IST numbers and STAR as each language reads them."""
    written(tmp_path, tables, "c", "gas", "nasm", "rust")
    constants = tables.constants
    (tmp_path / "c.c").write_text('#include "tables.h"\nuint64_t all[] = {' + ", ".join(constants) + "};\n")
    (tmp_path / "gas.s").write_text('.include "constants.inc"\n.data\n.8byte ' + ", ".join(constants) + "\n")
    (tmp_path / "nasm.asm").write_text('%include "constants.asm"\nsection .data\ndq ' + ", ".join(constants) + "\n")
    run(tmp_path, "gcc", "-c", "-o", "c.o", "c.c")
    run(tmp_path, "as", "-o", "gas.o", "gas.s")
    run(tmp_path, "nasm", "-f", "elf64", "-o", "nasm.o", "nasm.asm")
    expected = b"".join(value.to_bytes(8, "little") for value in constants.values())
    for name in ("c.o", "gas.o", "nasm.o"):
        assert expected in [data for _, data in Linked(tmp_path / name).pieces]
    rust = (tmp_path / "tables.rs").read_text()
    for name, value in constants.items():
        assert f"pub const {name}: u{64 if name == 'STAR' else 16} = {value:#x};\n" in rust


# What needs no tools


def test_bin_and_json() -> None:
    tables = config.load(str(EXAMPLES / "double_fault.toml"))
    find = config.lookup(tables)
    files = emit("bin", tables, find)
    assert files == {f"{table.kind}.bin": table.build(find) for table in tables.all}
    document = json.loads(emit("json", tables, find)["tables.json"])
    assert document["constants"] == tables.constants
    for told, table in zip(document["tables"], tables.all, strict=True):
        assert bytes.fromhex("".join(entry["raw"] for entry in told["entries"])) == table.build(find)
        assert (told["kind"], told["base"], told["limit"]) == (table.kind, hex(table.place.at(find)), table.size - 1)
    gate = document["tables"][1]["entries"][8]
    assert gate["addresses"] == {"offset": "asm_df"}
    assert (gate["number"], gate["name"], gate["offset"], gate["ist"]) == (8, "#DF", "0xffffffff80100080", 1)


def test_bin_of_several_cpus(tmp_path: Path) -> None:
    text = "[[cpu]]\n[[cpu]]\n" + "[symbols]\n" + "".join(f"{n} = 0\n" for n in ("gdt", "idt", "tss0", "tss1"))
    (tmp_path / "a.toml").write_text(text)
    tables = config.load(str(tmp_path / "a.toml"))
    assert {"tss0.bin", "tss1.bin"} < emit("bin", tables, config.lookup(tables)).keys()


def test_json_before_the_link(tmp_path: Path) -> None:
    """What has no address yet is null, and what it will be is named."""
    (tmp_path / "a.toml").write_text('[idt]\n8 = "df"\n')
    tables = config.load(str(tmp_path / "a.toml"))
    idt = json.loads(emit("json", tables, config.lookup(tables))["tables.json"])["tables"][1]
    assert idt["base"] is None
    assert [idt["entries"][8][key] for key in ("raw", "offset", "addresses", "selector")] == [
        None, None, {"offset": "df"}, 8,
    ]  # fmt: skip


def test_a_stub_knows_one_vector(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[idt]\n"0..9" = "all"\n')
    tables = config.load(str(tmp_path / "a.toml"))
    with pytest.raises(UsageError, match="vectors #DE and #DB have one handler, all, but a stub knows one vector"):
        emit("stubs", tables, config.lookup(tables))


def test_a_stub_begins_at_its_symbol_or_behind(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[idt]\n8 = "df - 16"\n')
    tables = config.load(str(tmp_path / "a.toml"))
    expected = (
        r"^--emit stubs: the stub of vector #DF would lie before its symbol, at df - 0x10: give it one of its own"
    )
    with pytest.raises(UsageError, match=expected):
        emit("stubs", tables, config.lookup(tables))


def test_a_stride_has_room_for_a_stub(tmp_path: Path) -> None:
    """Refused here, not by the assembler; what has just room is assembled."""
    text = '[idt]\n"VECTORS" = { handler = { base = "irqs", stride = 9 } }\n'
    (tmp_path / "a.toml").write_text(text.replace("VECTORS", "0x20..0x7f"))
    tables = config.load(str(tmp_path / "a.toml"))
    assert b".org irqs + 0x9," in emit("stubs", tables, config.lookup(tables))["stubs.s"]
    (tmp_path / "a.toml").write_text(text.replace("VECTORS", "0x7f..0x81"))
    tables = config.load(str(tmp_path / "a.toml"))
    expected = (
        r"the stub of vector 0x80 at irqs \+ 0x9 needs 12 bytes, but that of 0x81 follows after 9: a stride of 16"
    )
    with pytest.raises(UsageError, match=expected):
        emit("stubs", tables, config.lookup(tables))


@pytest.mark.needs("as", "nasm")
@pytest.mark.parametrize("assembler", ASSEMBLERS)
def test_a_base_whose_first_vector_goes_elsewhere(assembler: str, tmp_path: Path) -> None:
    """The base is defined all the same, and the others lie at their distance from it."""
    (tmp_path / "a.toml").write_text('[idt]\n"32..35" = { handler = { base = "irqs", stride = 16 } }\n32 = "timer"\n')
    written(tmp_path, config.load(str(tmp_path / "a.toml")), "stubs")
    run(tmp_path, *ASSEMBLERS[assembler][1])
    linked = Linked(tmp_path / "stubs.o")
    code = next(data for start, data in linked.pieces if data)
    at = linked.symbols["irqs"]
    assert code[at : at + 16] == b"\xcc" * 16
    assert [code[at + n * 16 : at + n * 16 + 4].hex() for n in (1, 2, 3)] == ["6a006a21", "6a006a22", "6a006a23"]


@pytest.mark.needs("as", "nasm")
@pytest.mark.parametrize("assembler", ASSEMBLERS)
def test_the_smallest_strides_are_assembled(assembler: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[idt]\n"0x20..0x7f" = { handler = { base = "low", stride = 9 } }\n'
        '"0x80..0xff" = { handler = { base = "high", stride = 12 } }\n'
    )
    written(tmp_path, config.load(str(tmp_path / "a.toml")), "stubs")
    run(tmp_path, *ASSEMBLERS[assembler][1])


@pytest.mark.parametrize(
    "name", ["d*/k.toml", "a\nhlt\n.toml", "a\x1b[31m.toml", "a\udcff.toml", "a\u2028b\u202e.toml"]
)
def test_a_path_ends_no_comment(name: str, tmp_path: Path) -> None:
    """It stands in the first line of every source, whatever is in it."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text((EXAMPLES / "double_fault.toml").read_text())
    tables = config.load(str(path))
    plain = config.load(str(EXAMPLES / "double_fault.toml"))
    for language in names():
        made, expected = (emit(language, t, config.lookup(t)) for t in (tables, plain))
        for file, contents in made.items():
            (first, rest), (line, same) = (data.partition(b"\n")[::2] for data in (contents, expected[file]))
            if language not in ("bin", "json"):
                assert first.split(b"/* ")[-1].removesuffix(b" */").count(b"*/") == 0
                assert first.decode().isprintable() and line[:2] == first[:2]
                assert rest == same


def test_names_that_a_language_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[idt]\n8 = ".Ldf"\n')
    tables = config.load(str(tmp_path / "a.toml"))
    with pytest.raises(UsageError, match=r"^--emit c: the symbol \.Ldf is not an identifier there$"):
        emit("c", tables, config.lookup(tables))
    assert (
        "idt_8_offset_0 = ABSOLUTE((.Ldf) & 0xffff);" in emit("ld", tables, config.lookup(tables))["tables.ld"].decode()
    )


@pytest.mark.parametrize("language", names())
def test_every_emitter_shows_a_sample(language: str) -> None:
    """What its docstring shows in a block is what it writes."""
    name = f"x86tables.emit.{language.replace('-', '_')}"
    __import__(name)
    module = sys.modules[name]
    tables = config.load(str(EXAMPLES / "double_fault.toml"))
    made = b"".join(emit(language, tables, config.lookup(tables)).values()).decode(errors="replace")
    samples = re.findall(r"(?:^    .*\n)+", module.__doc__ or "", re.MULTILINE)
    assert samples or language == "bin"
    for line in "".join(samples).splitlines():
        assert "".join(line.split()) in "".join(made.split()), line
