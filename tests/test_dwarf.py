"""Source lines beside handler names, from the debugging information of an ELF file."""

import json
import lzma
import re
import subprocess
from pathlib import Path

import pytest

from x86tables.checks.stacks import has_red_zone
from x86tables.commands import main
from x86tables.machine.files import load
from x86tables.machine.symbols import Symbols
from x86tables.readers import read_symbols
from x86tables.readers.dwarf import Lines

LOGS = Path(__file__).parent / "logs"
KERNEL = str(LOGS / "triple.elf.xz")
IMAGE = [str(LOGS / "triple.core.xz"), "--symbols", KERNEL]
MAIN = "static int x;\n__attribute__((noinline)) void handler(void) {\n  x++;\n}\nvoid _start(void) { handler(); }\n"


def source_line(label: str) -> str:
    """Where the assembly has the instruction after a label."""
    lines = (LOGS / "kernel.asm").read_text().splitlines()
    return f"kernel.asm:{lines.index(label) + 2}"


def test_lines_are_those_of_the_source() -> None:
    symbols = read_symbols(KERNEL)
    for name in ("overflow", "double_fault", "general_protection", "page_fault"):
        assert symbols.line(symbols.address(name)) == source_line(f"{name}:")
    assert symbols.place(symbols.address("page_fault")) == f"page_fault at {source_line('page_fault:')}"


def test_names_of_files_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(load(KERNEL)[:].replace(b"kernel.asm\0", b"\x1b[1m\nx.asm\0"))
    symbols = read_symbols(str(tmp_path / "kernel"))
    line = symbols.line(symbols.address("overflow"))
    assert line and "\\x1b[1m\\nx.asm:" in line and line.isprintable()


def test_data_and_strange_addresses_have_no_line() -> None:
    symbols = read_symbols(KERNEL)
    for address in (symbols.address("idt"), 0, 0xFFFF, 1 << 63, (1 << 64) - 1):
        assert symbols.line(address) is None
    assert symbols.place(symbols.address("idt")) == "idt"


def test_a_moved_kernel_keeps_its_lines() -> None:
    symbols = read_symbols(KERNEL)
    moved = symbols.moved(0x200000).moved(0x1000)
    assert moved.line(moved.address("overflow")) == symbols.line(symbols.address("overflow"))
    assert moved.line(symbols.address("overflow")) is None


def test_nothing_is_opened_before_the_first_question(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Lines] = []
    real = Lines._open

    def note(lines: Lines) -> None:
        opened.append(lines)
        real(lines)

    monkeypatch.setattr(Lines, "_open", note)
    symbols = read_symbols(KERNEL)
    assert symbols.name(symbols.address("overflow")) == "overflow"
    assert not opened
    for _ in range(3):
        assert symbols.line(symbols.address("overflow"))
    assert len(opened) == 1


@pytest.mark.needs("gcc", "objcopy")
@pytest.mark.parametrize("options", [["-gdwarf-3"], ["-gdwarf-4", "-O2"], ["-gdwarf-5"], ["-gdwarf-5", "-gz=zlib"]])
def test_what_gcc_writes(tmp_path: Path, options: list[str]) -> None:
    """Each version of DWARF, with .debug_aranges and without: clang and rustc leave it out."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.c").write_text(MAIN)
    (tmp_path / "sub/b.c").write_text("int two(int a)\n{ return a * 2; }\n")
    build = [
        "gcc",
        *options,
        "-ffreestanding",
        "-nostdlib",
        "-static",
        "-fno-pie",
        "-no-pie",
        "-o",
        "k",
        "a.c",
        "sub/b.c",
    ]
    subprocess.run(build, cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-R", ".debug_aranges", "k", "bare"], cwd=tmp_path, check=True)
    for name in ("k", "bare"):
        symbols = read_symbols(str(tmp_path / name))
        found = [symbols.line(symbols.address(function)) for function in ("handler", "_start", "two")]
        assert found[0] in ("a.c:2", "a.c:3") and found[1:] == ["a.c:5", "sub/b.c:2"]
    subprocess.run(["objcopy", "--strip-debug", "k", "none"], cwd=tmp_path, check=True)
    stripped = read_symbols(str(tmp_path / "none"))
    assert stripped.place(stripped.address("handler")) == "handler"


@pytest.mark.needs("gcc", "objcopy")
def test_functions_that_the_linker_has_discarded_have_no_lines(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int unused(int a) { return a * 3; }\nvoid _start(void) { for (;;); }\n")
    build = ["gcc", "-g", "-ffunction-sections", "-Wl,--gc-sections", "-ffreestanding", "-nostdlib", "-static"]
    subprocess.run([*build, "-fno-pie", "-no-pie", "-o", "k", "a.c"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "--only-keep-debug", "k", "debug"], cwd=tmp_path, check=True)
    for name in ("k", "debug"):
        symbols = read_symbols(str(tmp_path / name))
        assert symbols.line(symbols.address("_start")) == "a.c:2" and not symbols.has("unused")
        assert [symbols.line(at) for at in range(64)] == [None] * 64


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("options", [["-gdwarf-4"], ["-gdwarf-5"], ["-gdwarf-5", "-gz=zlib"]])
def test_what_code_was_compiled_with(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "a.c").write_text(MAIN)
    (tmp_path / "b.c").write_text("int two(int a) { return a * 2; }\n")
    build = ["gcc", *options, "-ffreestanding", "-nostdlib", "-static"]
    subprocess.run([*build, "-mno-red-zone", "-c", "a.c"], cwd=tmp_path, check=True)
    for name, more in (("bad", []), ("good", ["-mno-red-zone"]), ("none", ["-gno-record-gcc-switches"])):
        subprocess.run([*build, *more, "-c", "b.c"], cwd=tmp_path, check=True)
        files = ["b.o"] if name == "none" else ["a.o", "b.o"]
        subprocess.run([*build, "-o", name, *files], cwd=tmp_path, check=True)
    found = {name: read_symbols(str(tmp_path / name)).compiled(has_red_zone) for name in ("bad", "good", "none")}
    assert found == {"bad": ("b.c",), "good": (), "none": None}
    assert read_symbols(KERNEL).compiled(has_red_zone) is None, "an assembler's"


@pytest.mark.parametrize("step", [7, 13])
def test_damaged_debugging_information_costs_only_the_line(tmp_path: Path, step: int) -> None:
    """It is lost, or a wrong one: a printable word either way."""
    good = lzma.decompress(Path(KERNEL).read_bytes())
    symbols = read_symbols(KERNEL)
    addresses = [symbols.address(name) for name in ("overflow", "page_fault")]
    right, found = [symbols.line(address) for address in addresses], []
    start = good.index(b"kernel.asm") - 64
    for at in range(start, min(start + 400, len(good)), step):
        damaged = bytearray(good)
        damaged[at] ^= 0xFF
        (tmp_path / str(at)).write_bytes(damaged)
        lines = Lines(load(str(tmp_path / str(at))))
        found.append([lines(address) for address in addresses])
        assert all(line is None or re.fullmatch(r"[^ ]+:\d+", line) for line in found[-1])
    assert right in found and [None, None] in found
    assert any(lines != right and None not in lines for lines in found), "a wrong line"


def test_in_dump_check_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    line = source_line("double_fault:")
    for command in (["dump", *IMAGE], ["check", *IMAGE], ["trace", *IMAGE, "--vector", "8"]):
        main(command)
        assert f"double_fault at {line}" in capsys.readouterr().out, command[0]
    assert main(["dump", *IMAGE, "--format", "json"]) == 0
    gates = json.loads(capsys.readouterr().out)["cpus"][0]["idt"]["gates"]
    assert (gates[8]["handler"], gates[8]["line"], gates[9]["line"]) == ("double_fault", line, None)
    main(["trace", *IMAGE, "--vector", "8", "--reg", "rsp=0x107000", "--format", "json"])
    (delivery,) = json.loads(capsys.readouterr().out)["cpus"][0]["deliveries"]
    assert (delivery["name"], delivery["line"]) == ("double_fault", line)


def test_a_map_has_no_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "map").write_text("0000000000100144 T double_fault\n")
    assert main(["dump", IMAGE[0], "--symbols", str(tmp_path / "map"), "--format", "json"]) == 0
    gate = json.loads(capsys.readouterr().out)["cpus"][0]["idt"]["gates"][8]
    assert gate["handler"] == "double_fault" and "line" not in gate
    assert Symbols([(1, "a")]).line(1) is None
