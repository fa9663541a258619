"""Tables patched into kernels that GNU as and ld have linked: byte for byte, refused where they cannot be, verified."""

import gzip
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import call, refused

from x86tables import Gdt, Idt, PseudoDescriptor, Tss, config, link
from x86tables.emit import ALIGN
from x86tables.errors import ImageError, UsageError
from x86tables.link import writing

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.needs("as", "ld", "nm", "objcopy")

KERNEL = """
        .text
        .globl start, asm_bp, asm_df, gdt, idt, tss, gdtr, idtr, kernel_stack, df_stack
start:  hlt
        .skip {before}
asm_bp: iretq
        .balign 16
asm_df: hlt
        .section .tables, "aw"
        .balign 4096
marker: .quad 0x1122334455667788
gdt:    .skip 40
        .balign 16
idt:    .skip 4096
        .balign 128
tss:    .skip 104
gdtr:   .skip 10
idtr:   .skip 10
after:  .quad 0x99aabbccddeeff00
        .bss
        .balign 4096
        .skip 4096
kernel_stack: .skip 16384
        .size kernel_stack, 16384
        .skip 4096
df_stack: .skip 20480
        .section .note.GNU-stack, "", @progbits
"""
SCRIPT = """
ENTRY(start)
PHDRS { text PT_LOAD FLAGS(5); data PT_LOAD FLAGS(6); }
SECTIONS
{
    . = 0xffffffff80100000;
    .text : { *(.text) } :text
    . = ALIGN(4096);
    .tables : { *(.tables) } :data
    .bss : { *(.bss) } :data
}
"""
CONFIG = """
[cpu]
stack = { bottom = "kernel_stack", size = "16 KiB", guard = 4096 }
ist1 = { name = "double_fault", bottom = "df_stack", size = "20 KiB", guard = 4096 }
[idt]
"#BP" = "asm_bp"
"#DF" = { handler = "asm_df", ist = "double_fault" }
"""


class Build:
    """A folder with a kernel in it, its source and its declaration changed by replacing words."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def elf(
        self, *changes: tuple[str, str], name: str = "kernel.elf", before: int = 0, flags: str = "", also: str = ""
    ) -> Path:
        """Assemble and link; `changes` are made in source and linker script, `also` is another source file."""
        source, script = KERNEL.format(before=before), SCRIPT
        for old, new in changes:
            assert old in source + script
            source, script = source.replace(old, new), script.replace(old, new)
        base = self.folder / Path(name).stem
        base.with_suffix(".s").write_text(source)
        base.with_suffix(".ld").write_text(script)
        self.run("as", "-o", base.with_suffix(".o"), base.with_suffix(".s"))
        out = self.folder / name
        other = base.with_suffix(".other.s")
        other.write_text(also + '.section .note.GNU-stack, "", @progbits\n')
        self.run("as", "-o", other.with_suffix(".o"), other)
        arguments = ["-z", "noexecstack", "--no-warn-rwx-segments", *flags.split(), "-T", base.with_suffix(".ld")]
        self.run("ld", "-nostdlib", *arguments, "-o", out, base.with_suffix(".o"), other.with_suffix(".o"))
        return out

    def toml(self, *changes: tuple[str, str], more: str = "") -> Path:
        """The declaration."""
        text = CONFIG + more
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.folder / "kernel.toml"
        path.write_text(text)
        return path

    def run(self, *argv: object) -> str:
        """A program that succeeds; what it prints."""
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def addresses(self, elf: Path) -> dict[str, int]:
        """Symbols as nm prints them."""
        rows = [line.split() for line in self.run("nm", elf).splitlines()]
        return {row[2]: int(row[0], 16) for row in rows if len(row) == 3}

    def section(self, elf: Path, name: str = ".tables") -> bytes:
        """The contents of a section, by objcopy."""
        out = self.folder / "section"
        self.run("objcopy", "-O", "binary", f"--only-section={name}", elf, out)
        return out.read_bytes()


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_only_the_reserved_bytes_change(build: Build) -> None:
    elf, out = build.elf(), build.folder / "out.elf"
    status, shown, err = call("link", elf, build.toml(), "-o", out)
    assert (status, err) == (0, ""), shown
    assert "out.elf: 5 tables patched" in shown
    before, after = elf.read_bytes(), out.read_bytes()
    where, tables = build.addresses(elf), build.section(out)
    start = where["marker"]

    def at(name: str, size: int) -> bytes:
        return tables[where[name] - start :][:size]

    idt, gdt = Idt.parse(at("idt", 4096)), Gdt.parse(at("gdt", 40))
    assert (idt["#DF"].offset, idt["#DF"].ist, idt["#BP"].offset) == (where["asm_df"], 1, where["asm_bp"])
    assert [gate.p for gate in idt].count(True) == 2
    assert [entry.kind for entry in gdt.entries()] == ["null", "code64", "data", "tss-available"]
    assert gdt[0x18].base == where["tss"]  # type: ignore[union-attr]
    assert Tss.parse(at("tss", 104)) == Tss(ist1=where["df_stack"] + 20480)
    assert PseudoDescriptor.parse(at("gdtr", 10)) == PseudoDescriptor(limit=39, base=where["gdt"])
    assert PseudoDescriptor.parse(at("idtr", 10)) == PseudoDescriptor(limit=4095, base=where["idt"])
    # every byte outside of the tables is the linker's
    sizes = {"gdt": 40, "idt": 4096, "tss": 104, "gdtr": 10, "idtr": 10}
    offset = before.index((0x1122334455667788).to_bytes(8, "little")) - start
    blank_before, blank_after = bytearray(before), bytearray(after)
    for name, size in sizes.items():
        for data in (blank_before, blank_after):
            data[where[name] + offset : where[name] + offset + size] = bytes(size)
    assert blank_before == blank_after and before != after
    assert elf.read_bytes() == before
    assert build.addresses(out) == where


def test_in_place_keeps_the_mode_and_can_be_repeated(build: Build) -> None:
    elf = build.elf()
    os.chmod(elf, 0o741)
    alias = build.folder / "alias.elf"
    alias.symlink_to(elf)
    assert call("link", alias, build.toml())[0] == 0
    assert stat.S_IMODE(elf.stat().st_mode) == 0o741 and alias.is_symlink()
    once = elf.read_bytes()
    status, shown, _ = call("link", elf, build.toml())
    assert status == 0 and "0 bytes changed" in " ".join(shown.split())
    assert elf.read_bytes() == once
    assert sorted(path.name for path in build.folder.iterdir() if path.name.startswith(".")) == []


def test_a_failed_write_leaves_nothing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    elf = build.elf()
    before, there = elf.read_bytes(), sorted(build.folder.iterdir())
    plan = link.plan(link.read(str(elf)), config.load(str(build.toml())))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        link.write(plan, str(elf))
    assert elf.read_bytes() == before
    assert sorted(set(build.folder.iterdir()) - set(there)) == [build.folder / "kernel.toml"]
    with pytest.raises(UsageError, match="not a file"):
        link.write(plan, os.devnull)
    with pytest.raises(UsageError, match="no such directory"):
        link.write(plan, str(build.folder / "none/kernel.elf"))


@pytest.mark.parametrize("lost", ["magic", "byte of the GDT", "half"])
def test_what_was_written_is_read_again(build: Build, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """Before it takes the name: here something goes wrong between the plan and the file."""
    elf = build.elf()
    before, whole = elf.read_bytes(), writing.patched
    plan = link.plan(link.read(str(elf)), config.load(str(build.toml())))
    gdt = plan.patches[0].offset + 8
    part = {"magic": slice(4), "byte of the GDT": slice(gdt, gdt + 1), "half": slice(gdt, None)}[lost]

    def wrong(plan: link.Plan) -> bytes:
        data = bytearray(whole(plan))
        del data[part]
        return bytes(data)

    monkeypatch.setattr(writing, "patched", wrong)
    with pytest.raises(
        ImageError, match=f"^{elf}: not written, because the patched file would be damaged: (?!.*x86tables-)"
    ):
        link.write(plan, str(elf))
    assert elf.read_bytes() == before
    assert [path.name for path in build.folder.iterdir() if path.name.startswith(".")] == []


def test_what_is_assumed_is_said(build: Build) -> None:
    _, shown, _ = call("link", build.elf(), build.toml())
    assert "assumes that the boot code unmaps [0xffffffff80103000, 0xffffffff80104000)" in shown
    assert "assumes that the boot code maps the kernel as its program headers say" in shown
    assert "CPU 0  survives" in shown and "the stack in use: guarded" in shown
    far = build.toml(('bottom = "df_stack"', "bottom = 0xffffffff90000000"))
    _, shown, _ = call("link", build.elf(), far)
    assert "assumes that the boot code maps [0xffffffff90000000, 0xffffffff90005000) (double_fault of CPU 0)" in shown


def test_sections_instead_of_symbols(build: Build) -> None:
    moved = (
        (
            "        .balign 16\nidt:    .skip 4096",
            '        .section .idt, "aw"\n        .balign 16\n        .skip 4096',
        ),
        ("        .balign 128\ntss:", '        .section .tables, "aw"\n        .balign 128\ntss:'),
        (", idt, tss", ", tss"),
        ("    .bss :", "    .idt : { *(.idt) } :data\n    .bss :"),
    )
    elf = build.elf(*moved)
    assert "idt" not in build.addresses(elf)
    status, shown, err = call("link", elf, build.toml())
    assert (status, err) == (0, ""), shown
    assert Idt.parse(build.section(elf, ".idt"))["#DF"].offset == build.addresses(elf)["asm_df"]


def test_operands_are_left_to_a_kernel_that_makes_them_itself(build: Build) -> None:
    elf = build.elf((", gdtr, idtr", ""), ("gdtr: ", "descriptor_a: "), ("idtr: ", "descriptor_b: "))
    status, shown, _ = call("link", elf, build.toml())
    assert status == 0 and "3 tables patched" in shown
    assert "no symbol gdtr: the kernel itself makes what LGDT reads: limit 0x27" in shown
    named = build.toml(more='[tables]\ngdtr = "operand"\n')
    assert "no symbol 'operand' (place of the GDTR)" in refused("link", elf, named)


def test_a_position_independent_kernel(build: Build) -> None:
    elf = build.elf(("0xffffffff80100000", "0"), flags="-pie --no-dynamic-linker")
    toml = build.toml()
    assert "position-independent (ET_DYN): --base ADDR" in refused("link", elf, toml)
    assert "a multiple of 4096" in refused("link", elf, toml, "--base", "0x1001")
    status, shown, err = call("link", elf, toml, "--base", "0xffffffff80200000")
    assert (status, err) == (0, ""), shown
    where, tables = build.addresses(elf), build.section(elf)
    gates = Idt.parse(tables[where["idt"] - where["marker"] :][:4096])
    assert gates["#DF"].offset == where["asm_df"] + 0xFFFFFFFF80200000
    assert call("link", elf, toml, "--verify", "--base", "0xffffffff80200000")[0] == 0
    status, shown, _ = call("link", elf, toml, "--verify", "--base", "0xffffffff80300000")
    assert status == 1 and "idt #DF is stale" in shown
    assert "--base is for position-independent files" in refused("link", build.elf(), toml, "--base", "0x1000")


# Refused


ROOM = [
    (
        ("gdt:    .skip 40", "gdt:    .skip 24\nother:  .skip 16"),
        "24 bytes are reserved (other follows), 40 needed; if gdt is a table of the kernel's own",
    ),
    (("gdt:    .skip 40", "gdt:    .skip 40\n.size gdt, 32"), "32 bytes are reserved (the size of gdt), 40 needed; "),
    (("after:  .quad 0x99aabbccddeeff00", ""), "6 bytes are reserved (then its section ends), 10 needed"),
    (("gdt:    .skip 40", ".skip 4\ngdt: .skip 40"), "misaligned: a multiple of 8 expected"),
    ((".balign 128\ntss:", ".balign 4096\n.skip 4000\ntss:"), "misaligned: it crosses a page at 0xffffffff80104000"),
]


@pytest.mark.parametrize(("change", "sentence"), ROOM, ids=["label", "size", "end", "alignment", "page"])
def test_space_that_does_not_do(build: Build, change: tuple[str, str], sentence: str) -> None:
    changes = [change]
    if "then its section ends" in sentence:
        changes.append(("idtr:   .skip 10", "idtr:   .skip 6"))
    elf = build.elf(*changes)
    before = elf.read_bytes()
    assert sentence in refused("link", elf, build.toml())
    assert elf.read_bytes() == before


def test_more_space_than_needed_stays_as_it_is(build: Build) -> None:
    elf = build.elf(("gdt:    .skip 40", "gdt:    .skip 40\n.fill 24, 1, 0x5a\n.size gdt, 64"))
    assert call("link", elf, build.toml())[0] == 0
    at = build.addresses(elf)["gdt"] - build.addresses(elf)["marker"]
    assert build.section(elf)[at + 40 : at + 64] == b"\x5a" * 24


def test_symbols_that_are_missing(build: Build) -> None:
    elf = build.elf(("asm_df", "asm_dg"))
    assert "no symbol 'asm_df' (idt #DF.offset); did you mean asm_dg?" in refused("link", elf, build.toml())
    build.run("strip", elf)
    assert "no symbols: patch the tables in before the kernel is stripped" in refused("link", elf, build.toml())


def test_symbols_that_are_there_twice(build: Build) -> None:
    again = ".text\n.skip 64\nasm_df: hlt\n"
    elf = build.elf((", asm_df", ""), also=again)
    assert "symbol 'asm_df' (idt #DF.offset) is ambiguous: 0xffff" in refused("link", elf, build.toml())
    sentence = refused("link", build.elf((" gdt,", ""), also=again.replace("asm_df", "gdt")), build.toml())
    assert "symbol 'gdt' (place of the GDT) is ambiguous: 0xffff" in sentence
    assert "; make the one that is meant global, or name another: [tables] gdt = SYMBOL" in sentence
    # a global one is what other files of the kernel mean
    elf = build.elf(also=again)
    assert call("link", elf, build.toml())[0] == 0
    plan = link.plan(link.read(str(elf)), config.load(str(build.toml())))
    assert plan.find("asm_df") == build.addresses(build.elf())["asm_df"]


def test_tables_without_contents(build: Build) -> None:
    changes = (('.section .tables, "aw"', '.section .bss, "aw", @nobits'), ("marker: .quad", "marker: .skip 8 #"))
    elf = build.elf(*changes, ("after:  .quad", "after:  .skip 8 #"))
    sentence = refused("link", elf, build.toml())
    assert "gdt at 0xffffffff80101008: .bss has no contents in the file: reserve the space in a section" in sentence
    assert sentence.endswith("; if gdt is a table of the kernel's own, name another: [tables] gdt = SYMBOL")
    nowhere = build.toml(more="[tables]\ngdt = 0x1000\n")
    assert "gdt at 0x1000: no segment is loaded there" in refused("link", build.elf(), nowhere)


def test_tables_in_one_place(build: Build) -> None:
    elf = build.elf(("gdt:    .skip 40", "gdt:\n.size gdt, 40"))
    assert "gdt at 0xffffffff80101008 reaches into idt" in refused("link", elf, build.toml())


@pytest.mark.parametrize(
    "flags", ["--emit-relocs", "-pie --no-dynamic-linker", "-pie --no-dynamic-linker -z pack-relative-relocs"]
)
def test_relocations_of_patched_bytes(build: Build, flags: str) -> None:
    pie = "-pie" in flags
    base = ("--base", "0xffffffff80100000") if pie else ()
    low = [("0xffffffff80100000", "0")] if pie else []  # elsewhere, GNU ld calls a position-independent file ET_EXEC
    elf = build.elf(("gdtr:   .skip 10", ".skip 6\ngdtr: .word 39\n.quad gdt"), *low, flags=flags)
    kind = "R_X86_64_RELATIVE" if pie else "R_X86_64_64"
    sentence = refused("link", elf, build.toml(), *base)
    assert f"a relocation ({kind}) at 0xffffffff80102" in sentence and "would overwrite bytes of gdtr" in sentence
    beside = build.elf(("after:  .quad 0x99aabbccddeeff00", "after:  .quad gdt"), *low, flags=flags)
    status, shown, _ = call("link", beside, build.toml(), *base)
    assert status == 0 and "assumes that the kernel is not moved when it is loaded (KASLR)" in shown


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda elf: shutil.copy(elf.with_suffix(".o"), elf), "an object file, not linked yet: a linked kernel"),
        (lambda elf: elf.write_bytes(gzip.compress(elf.read_bytes())), "compressed: patch the tables in before"),
        (lambda elf: elf.write_bytes(b"MZ" + bytes(100)), "not an ELF file: it begins with 4d 5a"),
        (lambda elf: elf.write_bytes(elf.read_bytes()[:0x1800]), "reaches beyond the end of the file"),
        (lambda elf: elf.unlink(), "there is no such file"),
    ],
    ids=["object", "compressed", "other", "cut", "none"],
)
def test_files_that_are_no_linked_kernel(build: Build, make: Callable[[Path], object], sentence: str) -> None:
    elf = build.elf()
    make(elf)
    assert sentence in refused("link", elf, build.toml())


# Refused by the checks: status 1, and --no-check


def checked(build: Build, elf: Path, toml: Path) -> str:
    """What is printed when the checks refuse; with --no-check it is written all the same."""
    before = elf.read_bytes()
    status, shown, err = call("link", elf, toml)
    assert (status, err) == (1, "") and "nothing was written" in shown
    assert elf.read_bytes() == before
    status, forced, err = call("link", elf, toml, "--no-check")
    assert (status, err) == (0, "") and "tables patched" in forced
    assert elf.read_bytes() != before
    return " ".join(shown.split())


def test_a_gdt_that_ltr_cannot_write(build: Build) -> None:
    elf = build.elf((".tables : { *(.tables) } :data", ".tables : { *(.tables) } :text\n. = ALIGN(4096);"))
    shown = checked(build, elf, build.toml())
    assert (
        "refused: gdt at 0xffffffff80101008 is in a segment with permissions 'rx': LTR could not mark the TSS" in shown
    )
    told = '[[memory]]\nstart = "gdt"\nsize = 4096\npermissions = "rw"\n'
    shown = call(
        "link",
        build.elf(*[(".tables : { *(.tables) } :data", ".tables : { *(.tables) } :text\n. = ALIGN(4096);")]),
        build.toml(more=told),
    )[1]
    assert "LTR could not" not in shown and "GDT004" not in shown


def test_a_handler_that_cannot_be_executed(build: Build) -> None:
    elf = build.elf(("asm_df: hlt", ""), ("after:  .quad", "asm_df: hlt\nafter:  .quad"))
    shown = checked(build, elf, build.toml())
    assert "refused: the handler asm_df at 0xffffffff801020" in shown
    assert "is in a segment with permissions 'rw': it cannot be executed" in shown


def test_a_stack_that_cannot_be_pushed_to(build: Build) -> None:
    elf = build.elf(
        ("df_stack: .skip 20480", '.section .rodata, "a"\n.balign 4096\ndf_stack: .skip 20480'),
        (". = ALIGN(4096);", ".rodata : { *(.rodata) } :text\n. = ALIGN(4096);"),
    )
    shown = checked(build, elf, build.toml())
    assert "refused: the stack double_fault below 0xffffffff80106000 is in a segment with permissions 'rx'" in shown


def test_a_stack_larger_than_what_is_reserved(build: Build) -> None:
    shown = checked(build, build.elf(), build.toml(("16 KiB", "20 KiB")))
    assert "the stack stack is declared with 20480 bytes, but kernel_stack has 16384" in shown


def test_no_double_fault_stack(build: Build) -> None:
    shown = checked(build, build.elf(), build.toml((', ist = "double_fault"', "")))
    assert "does not survive a stack overflow (triple-fault)" in shown and "IDT004" in shown


def test_a_stack_right_below_another(build: Build) -> None:
    toml = build.toml(('size = "20 KiB", guard = 4096', 'size = "20 KiB"'))
    shown = checked(build, build.elf(("16384\n        .skip 4096", "16384")), toml)
    assert "refused: the stack double_fault has no guard, and right below it lies the stack, which an" in shown
    assert call("link", build.elf(), toml)[0] == 0


def test_a_declared_guard_overrides_the_segments(build: Build) -> None:
    elf = build.elf()
    assert "the stack in use: guarded" in call("link", elf, build.toml())[1]
    unguarded = call("link", elf, build.toml((", guard = 4096", "")))[1]
    assert "the stack in use: silent-corruption" in unguarded


# Verified


def test_verify_names_the_gate_whose_handler_moved(build: Build) -> None:
    elf, toml = build.elf(), build.toml()
    status, shown, _ = call("link", elf, toml, "--verify")
    assert status == 1 and "idt at 0xffffffff80101030 is empty: `x86tables link` has not filled it in" in shown
    assert call("link", elf, toml)[0] == 0
    before = elf.read_bytes()
    status, shown, _ = call("link", elf, toml, "--verify")
    assert status == 0 and "kernel.elf: as" in shown and elf.read_bytes() == before
    # linked again after a change, with the tables of before
    tables = build.folder / "tables.bin"
    tables.write_bytes(build.section(elf))
    again = build.elf(name="again.elf", before=64)
    build.run("objcopy", "--update-section", f".tables={tables}", again)
    old, new = build.addresses(elf), build.addresses(again)
    status, shown, _ = call("link", again, toml, "--verify")
    assert status == 1
    assert " ".join(shown.split()) == (
        f"{again}: not as {toml} declares it "
        f"idt #BP is stale: offset is {old['asm_bp']:#x} (start+0x1), but asm_bp is {new['asm_bp']:#x} "
        f"idt #DF is stale: offset is {old['asm_df']:#x} (start+0x10), but asm_df is {new['asm_df']:#x}"
    )
    assert call("link", again, toml)[0] == 0 and call("link", again, toml, "--verify")[0] == 0
    # and after a change of the declaration alone
    changed = build.toml(("asm_df", "asm_bp"), (', ist = "double_fault"', ""))
    shown = call("link", again, changed, "--verify")[1]
    assert "idt #DF is stale: offset is" in shown and "idt #DF: ist is 0x1, declared as 0x0" in shown
    assert "idt #BP" not in shown


def test_verify_writes_nothing(build: Build) -> None:
    assert "--verify writes nothing" in refused("link", build.elf(), build.toml(), "--verify", "-o", "x")


def test_damaged_files_are_told_in_a_sentence(build: Build) -> None:
    elf, toml = build.elf(flags="--emit-relocs"), build.toml()
    good = elf.read_bytes()
    heads = [*range(0xE0), *range(len(good) - 0x400, len(good))]
    for at in heads[::11]:
        damaged = bytearray(good)
        damaged[at] ^= 0xFF
        elf.write_bytes(damaged)
        status, _, err = call("link", elf, toml, "--verify")
        assert status in (0, 1) or (err.startswith("x86tables: ") and err.count("\n") == 1), at


def test_from_python(build: Build) -> None:
    elf = build.elf()
    plan = link.plan(link.read(str(elf)), config.load(str(build.toml())))
    assert link.problems(plan) == []
    link.write(plan, str(elf))
    again = link.plan(link.read(str(elf)), config.load(str(build.toml())))
    assert link.stale(again) == [] and link.patched(again) == elf.read_bytes()


# The example kernel


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/kernel, built; and in `reserved.elf` the same with space where its tables are."""
    folder = tmp_path_factory.mktemp("example") / "kernel"
    shutil.copytree(ROOT / "examples/kernel", folder, ignore=shutil.ignore_patterns("build", "__pycache__"))
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["make", f"PYTHON={sys.executable}"], cwd=folder, env=here, check=True, capture_output=True)
    built = folder / "build/survives"
    lines = ['.section .note.GNU-stack, "", @progbits', ".data"]
    for table in config.load(str(built / "kernel.toml")).all:
        lines += [f".globl {table.name}", f".balign {ALIGN[table.kind]}", f"{table.name}: .skip {table.size}"]
    (built / "reserved.s").write_text("\n".join(lines) + "\n")
    objects = ["boot.o", "kernel.o", "stubs.o", "reserved.o"]
    subprocess.run(["as", "-o", "reserved.o", "reserved.s"], cwd=built, check=True)
    script = ["-z", "noexecstack", "-T", "../../kernel.ld", "-o", "reserved.elf"]
    subprocess.run(["ld", "-nostdlib", "-static", *script, *objects], cwd=built, check=True)
    return built


@pytest.mark.needs("make", "gcc")
def test_it_makes_what_gnu_ld_makes(example: Path) -> None:
    """Tables that the linker filled in by `tables.ld`, and tables patched in afterwards: the same kernel."""
    toml, flat = example / "kernel.toml", {}
    status, shown, _ = call("link", example / "kernel.elf", toml, "--verify")
    assert status == 0, shown
    assert call("link", example / "reserved.elf", toml, "--verify")[0] == 1
    status, shown, err = call("link", example / "reserved.elf", toml, "-o", example / "linked.elf")
    assert (status, err) == (0, ""), shown
    for name in ("kernel", "reserved", "linked"):
        subprocess.run(["objcopy", "-O", "binary", f"{name}.elf", f"{name}.bin"], cwd=example, check=True)
        flat[name] = (example / f"{name}.bin").read_bytes()
    assert flat["linked"] == flat["kernel"] != flat["reserved"]


@pytest.mark.needs("make", "gcc", "qemu-system-x86_64")
def test_it_survives_in_qemu(example: Path) -> None:
    elf = example / "booted.elf"
    assert call("link", example / "reserved.elf", example / "kernel.toml", "-o", elf)[0] == 0
    devices = ["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
    machine = ["qemu-system-x86_64", "-accel", "tcg", "-no-reboot", "-m", "16", "-nodefaults", "-display", "none"]
    done = subprocess.run(
        [*machine, *devices, "-kernel", elf, "-append", "overflow"], capture_output=True, text=True, timeout=60
    )
    assert "double fault on IST1" in done.stdout and done.returncode == 2 * 8 + 1
