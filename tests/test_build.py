"""`x86tables build`: checked before it is written, and the same bytes whoever links them."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli import call, output, refused
from linking import ASSEMBLERS, Linked, outside, run, written

from x86tables import config
from x86tables.emit import names

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DOUBLE_FAULT = EXAMPLES / "double_fault.toml"
FILES = {
    "gdt.bin", "idt.bin", "tss.bin", "gdtr.bin", "idtr.bin", "tables.ld", "tables.h", "tables.c", "tables.s",
    "constants.inc", "tables.asm", "constants.asm", "tables.rs", "stubs.s", "stubs.asm", "tables.json",
}  # fmt: skip


def test_everything(tmp_path: Path) -> None:
    """All forms in one run, into a folder that is made; each file is told with its size."""
    out = tmp_path / "a" / "b"
    text = output("build", DOUBLE_FAULT, "-o", out, "--emit", "bin,ld,c,gas,nasm,rust,stubs,json")
    assert {path.name for path in out.iterdir()} == FILES
    assert all(f"{path}: {path.stat().st_size:,} bytes\n" in text for path in out.iterdir())
    assert names() == ["bin", "c", "c-header", "gas", "json", "ld", "nasm", "rust", "rust-2024", "stubs"]


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    text = " ".join(output("build", DOUBLE_FAULT, "-o", tmp_path, "--emit", "json").split())
    assert (
        "assumes that the boot code unmaps [0xffffffff80210000, 0xffffffff80211000), "
        "[0xffffffff80220000, 0xffffffff80221000); confirm with check on a dump CPU 0 survives: " in text
    )


def broken(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.toml"
    path.write_text(DOUBLE_FAULT.read_text().replace(', ist = "double_fault"', ""))
    return path


def test_refused(tmp_path: Path) -> None:
    """A kernel that would triple-fault is not written."""
    status, out, err = call("build", broken(tmp_path), "-o", tmp_path / "out", "--emit", "bin")
    assert (status, err) == (1, "")
    assert "CPU 0  triple-fault: " in out
    last = (
        "nothing was written: CPU 0 does not survive a stack overflow (triple-fault); IDT004 is an error; --no-check "
    )
    assert " ".join(out.split()).endswith(last + "writes it anyway")
    assert not (tmp_path / "out").exists()


def test_refused_for_a_rule_alone(tmp_path: Path) -> None:
    """It survives, but SYSRET would load the wrong segments; a rule that is ignored refuses nothing."""
    path = tmp_path / "kernel.toml"
    text = (EXAMPLES / "two_cpus.toml").read_text().replace('"user_data", "user_code"', '"kernel_data_2", "user_code"')
    text = text.replace('"kernel_data_2"', '{ name = "user_data", kind = "code32" }')
    path.write_text(text)
    status, out, _ = call("build", path, "-o", tmp_path / "out", "--emit", "ld")
    assert status == 1
    assert "CPU 0  survives: " in out
    assert out.splitlines()[-1] == "nothing was written: SYS002 is an error; --no-check writes it anyway"
    path.write_text(text + '\n[check]\nignore = ["SYS002"]\n')
    output("build", path, "-o", tmp_path / "out", "--emit", "ld")


def test_no_check(tmp_path: Path) -> None:
    text = output("build", broken(tmp_path), "-o", tmp_path / "out", "--emit", "bin", "--no-check")
    assert len(text.splitlines()) == 5
    assert (tmp_path / "out/idt.bin").stat().st_size == 4096


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    """A missing address, a language that there is not: status 2, and nothing is written."""
    two = EXAMPLES / "two_cpus.toml"
    assert refused("build", two, "-o", tmp_path / "out", "--emit", "ld,bin") == (
        "--emit bin: no address for tss0: give it in [symbols], or --symbols KERNEL.elf"
    )
    assert refused("build", two, "-o", tmp_path / "out", "--emit", "ld,pascal") == (
        f"--emit pascal: one of {', '.join(names())}"
    )
    assert not (tmp_path / "out").exists()
    file = tmp_path / "file"
    file.write_text("")
    assert refused("build", two, "-o", file, "--emit", "ld") == f"{file}: File exists"


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """All files or none; here a limit on the size of a file is the disk."""
    out = tmp_path / "out"
    output("build", DOUBLE_FAULT, "-o", out, "--emit", "bin")
    path = tmp_path / "kernel.toml"
    path.write_text(DOUBLE_FAULT.read_text().replace("gdt = 0xffffffff80200000", "gdt = 0xffffffff80200100"))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    for folder in (out, tmp_path / "new"):
        program = (
            "import resource, sys; from x86tables.commands import main; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); sys.exit(main(sys.argv[1:]))"
        )
        argv = [sys.executable, "-B", "-c", program, "build", str(path), "-o", str(folder), "--emit", "bin,ld"]
        done = subprocess.run(argv, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"x86tables: {folder}/idt.bin: cannot be written: File too large\n"
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert not (tmp_path / "new").exists()
    output("build", path, "-o", out, "--emit", "bin")
    assert {file.name for file in out.iterdir()} == before.keys()
    assert (out / "gdtr.bin").read_bytes() != before["gdtr.bin"]


# With a linked kernel


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Two CPUs' tables linked into a kernel in the upper half, text read-only, by ld's own script."""
    tables = config.load(str(EXAMPLES / "two_cpus.toml"))
    written(tmp_path, tables, "gas", "ld", "stubs")
    (tmp_path / "outside.s").write_text(outside(tables, handlers=False, align=4096))
    run(tmp_path, "as", "-o", "outside.o", "outside.s")
    for words in ASSEMBLERS["gas"]:
        run(tmp_path, *words)
    objects = ["tables.o", "stubs.o", "outside.o", "tables.ld"]
    run(tmp_path, "ld", "-static", "-o", "kernel.elf", "-e", "0", "-Ttext-segment=0xffffffff80000000", *objects)
    return tmp_path / "kernel.elf"


@pytest.mark.needs("as")
def test_bytes_at_a_kernels_addresses(kernel: Path) -> None:
    """With --symbols, `bin` is what the linker has put into the kernel."""
    out = kernel.parent / "out"
    output("build", EXAMPLES / "two_cpus.toml", "-o", out, "--emit", "bin,json", "--symbols", kernel)
    linked = Linked(kernel)
    for name in ("gdt", "idt", "tss0", "tss1", "gdtr", "idtr"):
        contents = (out / f"{name}.bin").read_bytes()
        assert contents == linked.read(linked.symbols[name], len(contents)), name


@pytest.mark.needs("as")
def test_a_kernels_segments_are_memory(kernel: Path) -> None:
    """What the program headers do not let ring 0 write is no stack, and a handler in data cannot run."""
    two = EXAMPLES / "two_cpus.toml"
    path = kernel.parent / "kernel.toml"
    path.write_text(two.read_text().replace('bottom = "nmi_stack_1", size = "8 KiB", guard = "8 KiB"', 'top = "isr_9"'))
    status, out, _ = call("check", path, "--symbols", kernel, "--cpu", "1")
    assert status == 1
    assert "STK001  tss.ist2" in out
    path.write_text(two.read_text().replace('handler = "isr_8"', 'handler = "debug_stack_0", stub = false'))
    status, out, _ = call("check", path, "--symbols", kernel, "--cpu", "0")
    assert status == 1
    assert "IDT007  idt[8]" in out


@pytest.mark.needs("as")
def test_a_kernel_without_the_symbol(kernel: Path) -> None:
    path = kernel.parent / "kernel.toml"
    path.write_text((EXAMPLES / "two_cpus.toml").read_text().replace("int80_entry", "int_80_entry"))
    assert refused("build", path, "-o", kernel.parent / "out", "--emit", "bin", "--symbols", kernel) == (
        f"--emit bin: {kernel}: no symbol 'int_80_entry'"
    )


@pytest.mark.needs("as", "gcc", "rustc")
def test_a_kernel_with_tables_of_its_own(tmp_path: Path) -> None:
    """What the linker complains of stands in our output and in our source, with the keys that help."""
    own = ".data\n.globl gdt, idt, tss\ngdt: .quad 0, 0x00af9a000000ffff\nidt: .skip 4096\ntss: .skip 104\n"
    (tmp_path / "boot.s").write_text(own)
    run(tmp_path, "as", "-o", "boot.o", "boot.s")
    named = DOUBLE_FAULT.read_text() + '[tables]\ngdt = "kernel_gdt"\nidt = "kernel_idt"\n'
    named = named.replace("[cpu]\n", '[cpu]\ntss = "kernel_tss"\n')
    link = ["ld", "-static", "-e", "0", "-o", "kernel.elf", "boot.o", "tables.o", "stubs.o", "outside.o"]
    for text, prefix in ((DOUBLE_FAULT.read_text(), ""), (named, "kernel_")):
        (tmp_path / "kernel.toml").write_text(text)
        said = output("build", tmp_path / "kernel.toml", "-o", tmp_path, "--emit", "gas,ld,stubs,c,rust,nasm")
        defined = (
            f"Defines {prefix}gdt, {prefix}idt, {prefix}tss, gdtr, idtr. If the linker finds a multiple definition"
        )
        help_ = "rename this one with [tables] gdt = NAME (idt, gdtr, idtr) or [cpu] tss = NAME."
        assert f"{defined} of one of these, the kernel has its own: {help_}" in " ".join(said.split())
        for file in ("tables.s", "tables.c", "tables.rs", "tables.asm"):
            assert defined in (tmp_path / file).read_text() and help_ in (tmp_path / file).read_text()
        (tmp_path / "outside.s").write_text(outside(config.load(str(tmp_path / "kernel.toml")), handlers=False))
        for words in (["as", "-o", "outside.o", "outside.s"], *ASSEMBLERS["gas"]):
            run(tmp_path, *words)
        linked = subprocess.run([*link, "tables.ld"], cwd=tmp_path, capture_output=True, text=True)
        clashes = {name for name in ("gdt", "idt", "tss") if f"multiple definition of `{name}'" in linked.stderr}
        assert (linked.returncode, clashes) == ((0, set()) if prefix else (1, {"gdt", "idt", "tss"})), linked.stderr
    assert {"gdt", "kernel_gdt", "kernel_tss"} <= Linked(tmp_path / "kernel.elf").symbols.keys()
    assert "Defines" not in output("build", DOUBLE_FAULT, "-o", tmp_path / "bytes", "--emit", "bin,ld,json")
