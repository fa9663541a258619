"""Proofs in QEMU: real stack overflows on declared tables, and guests judged by the log."""

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import assemble
import pytest
import specimens
from cli import call, fitting, refused

from x86tables import Gate, Idt
from x86tables.delivery.scenarios import run_scenario
from x86tables.errors import NotThere, UsageError
from x86tables.machine.machine import Machine
from x86tables.machine.registers import LA57, PAE, SMAP, SMEP
from x86tables.prove import boot_image, overflow
from x86tables.prove import qemu as guest
from x86tables.tables.idt import Gate as IdtGate

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "examples/double_fault.toml"
QEMU = "qemu-system-x86_64"
needs_qemu = pytest.mark.needs(QEMU)


@pytest.fixture(scope="module")
def machine() -> Callable[..., Machine]:
    """The kernel of examples/double_fault.py, with what its function takes."""
    made: Callable[..., Machine] = runpy.run_path(str(ROOT / "examples/double_fault.py"))["kernel"]
    return made


@pytest.mark.needs("as", "objcopy", "nm")
@pytest.mark.parametrize("source", assemble.SOURCES)
def test_bytes_are_the_source_assembled(source: Path) -> None:
    assert source.with_name(f"{source.stem}_code.py").read_text() == assemble.module(source), (
        "run: python tests/assemble.py"
    )


# Stack overflows


@needs_qemu
def test_survives(machine: Callable[..., Machine]) -> None:
    with_stack = machine(ist=1)
    found = overflow.overflow(with_stack)
    assert (found.verdict, found.predicted, found.differs) == ("survives", "survives", "")
    assert (found.vector, found.error_code, found.stack) == (8, 0, "IST1")
    assert found.guard is not None and found.cr2 == found.guard[1] - 8
    assert found.rsp == with_stack.tss.ist1 - 48


@needs_qemu
def test_triple_fault(machine: Callable[..., Machine]) -> None:
    found = overflow.overflow(machine())
    assert (found.verdict, found.predicted, found.differs) == ("triple-fault", "triple-fault", "")
    assert found.guard is not None and found.cr2 is not None and found.guard[0] <= found.cr2 < found.guard[1]
    assert found.vector is None


@needs_qemu
def test_a_page_fault_handler_on_an_ist_survives_by_itself(machine: Callable[..., Machine]) -> None:
    made = machine(ist=1, page_fault=0xFFFF_FFFF_8010_0300)
    gate = made.idt[14].replace(ist=1)
    memory = made.memory.copy()
    memory.overlay(made.translate(made.registers.idtr.base) + 14 * 16, bytes(gate))  # type: ignore[union-attr]
    found = overflow.overflow(made.replace(memory=memory))
    assert (found.verdict, found.vector, found.stack, found.differs) == ("survives", 14, "IST1", "")
    assert found.error_code == 2


@needs_qemu
def test_a_stack_too_small_for_the_handler_loops(machine: Callable[..., Machine]) -> None:
    made = machine(ist=1)
    memory = made.memory.copy()
    memory.overlay(made.translate(made.registers.tr.base), bytes(made.tss.replace(ist1=0xFFFF_FFFF_8002_0030)))  # type: ignore[union-attr]
    found = overflow.overflow(made.replace(memory=memory))
    assert (found.verdict, found.predicted, found.differs) == ("loops", "loops", "")


@needs_qemu
def test_a_busy_task_register_is_told(machine: Callable[..., Machine]) -> None:
    made = machine(ist=1)
    entry = next(entry for entry in made.gdt.entries() if entry.kind.startswith("tss"))
    memory = made.memory.copy()
    place = made.translate(made.registers.gdtr.base + entry.selector)  # type: ignore[union-attr]
    memory.overlay(place + 5, b"\x8b")
    found = overflow.overflow(made.replace(memory=memory))
    assert found.verdict == "unknown"
    assert found.reason.startswith("the tables cannot be loaded: #GP(0x18) at 0x")


@needs_qemu
@pytest.mark.parametrize("flags", [SMEP | SMAP, LA57], ids=["smep and smap", "five levels"])
def test_features(machine: Callable[..., Machine], flags: int, tmp_path: Path) -> None:
    text = CONFIG.read_text() + (
        "[machine]\nsmep = true\nsmap = true\n" if flags & SMEP else "[machine]\nla57 = true\n"
    )
    (tmp_path / "kernel.toml").write_text(text)
    status, out, _ = call("prove", tmp_path / "kernel.toml", "--on", "qemu")
    assert status == 0 and "survives, as predicted" in out


def test_no_overflow_is_no_proof(machine: Callable[..., Machine]) -> None:
    """What was seen is judged by CR2 and RIP: a handler that was entered for another reason proves nothing."""
    made = machine(ist=1)
    variant = run_scenario("stack-overflow", made).variants[1]
    found = overflow.Overflow(made, "survives", "survives", "", 0, (0x1000, 0x2000), 8, 0, 0x1FF8, 0, 0x5000, "IST1")
    assert overflow.judged(found, variant, 0x5000).verdict == "survives"
    for changes in ({"cr2": 0x2000}, {"cr2": 0xFF8}, {"cr2": None}, {"rip": 0x5004}):
        other = overflow.judged(found.replace(**changes), variant, 0x5000)
        assert other.verdict == "unknown"
        assert "no stack overflow was seen" in other.reason


def test_what_is_not_as_predicted_is_told(machine: Callable[..., Machine]) -> None:
    made = machine(ist=1)
    variant = run_scenario("stack-overflow", made).variants[1]
    found = overflow.Overflow(made, "survives", "survives", "", 0, (0x1000, 0x2000), 14, 0, 0x1FF8, 0, 0x5000, "IST1")
    assert overflow.judged(found, variant, 0x5000).differs.startswith("vector 8 predicted, 14 seen")
    shut = overflow.judged(found.replace(verdict="triple-fault"), variant, 0x5000)
    assert shut.differs.startswith("survives predicted")


def test_handlers_need_room(machine: Callable[..., Machine]) -> None:
    made = machine(ist=1)
    idt = Idt.parse(bytes(made.idt))
    idt[3] = Gate.interrupt(idt[8].offset + 4, 8)
    memory = made.memory.copy()
    memory.overlay(made.translate(made.registers.idtr.base), bytes(idt))  # type: ignore[union-attr]
    with pytest.raises(NotThere, match="the handlers of #DF and #BP lie 4 bytes apart: 7 are needed"):
        boot_image.boot_image(made.replace(memory=memory), made.registers, 128)


def test_the_image_takes_no_page_of_the_machine(machine: Callable[..., Machine]) -> None:
    made = machine(ist=1)
    image = boot_image.boot_image(made, made.registers, 128)
    assert image.loop < 1 << 31
    assert list(image.handlers.values()) == [[3], [8]]
    assert isinstance(made.idt[8], IdtGate) and PAE & (made.registers.cr4 or 0)


# The command


@needs_qemu
def test_prove_a_configuration(tmp_path: Path) -> None:
    status, out, err = call("prove", CONFIG, "--on", "qemu", "--format", "json")
    cpu = fitting("prove", out)["cpus"][0]
    assert (status, err) == (0, "")
    assert (cpu["verdict"], cpu["agrees"], cpu["vector"], cpu["stack"]) == ("survives", True, 8, "IST1")
    assert cpu["cr2"] == "0xffffffff80210ff8"

    text = CONFIG.read_text()
    without = text.replace(', ist = "double_fault"', "")
    assert without != text
    (tmp_path / "kernel.toml").write_text(without)
    assert call("prove", tmp_path / "kernel.toml", "--on", "qemu")[0] == 1
    status, out, _ = call("prove", tmp_path / "kernel.toml", "--on", "qemu", "--expect", "triple-fault")
    assert status == 0
    assert "triple-fault, as predicted" in out


def test_prove_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install qemu-system-x86" in refused("prove", CONFIG, "--on", "qemu")


@needs_qemu
def test_prove_refuses(tmp_path: Path) -> None:
    assert "--on qemu takes a configuration" in refused("prove", ROOT / "tests/images/linux.core", "--on", "qemu")
    assert "for --on qemu" in refused("prove", ROOT / "tests/images/linux.core", "--on", "bochs", "--append", "x")
    assert "no other scenario" in refused("prove", CONFIG, "--on", "qemu", "--scenario", "syscall-gap")
    (tmp_path / "no.elf").write_bytes(specimens.header(2, 0))
    assert "QEMU does not run this: " in refused("prove", tmp_path / "no.elf", "--on", "qemu")


# Guests

SOURCE = """
    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long start
    .text
{header}
    .code32
    .globl start
start: {code}
"""


def build(folder: Path, code: str, header: str = "") -> Path:
    """A kernel of a few instructions in 32-bit mode, without any table."""
    (folder / "k.s").write_text(SOURCE.format(code=code, header=header))
    subprocess.run(["as", "-o", folder / "k.o", folder / "k.s"], check=True)
    link = ["ld", "-z", "noexecstack", "-z", "max-page-size=4096", "-Ttext", "0x100000", "-e", "start"]
    subprocess.run([*link, "--no-warn-rwx-segments", "-o", folder / "k.elf", folder / "k.o"], check=True)
    return folder / "k.elf"


@pytest.mark.needs("as", "ld", QEMU)
def test_a_guest_is_judged_by_its_log(tmp_path: Path) -> None:
    path = build(tmp_path, "ud2")
    assert call("prove", path, "--on", "qemu", "--expect", "triple-fault")[0] == 0
    assert call("prove", path, "--on", "qemu")[0] == 1
    status, out, _ = call(
        "prove", "--on", "qemu", "--expect", "triple-fault", "--", "-display", "none", "-kernel", path
    )
    assert status == 0 and "Triple fault: the processor shut down" in out


@pytest.mark.needs("as", "ld", QEMU)
def test_a_guest_in_which_nothing_happens_proves_nothing(tmp_path: Path) -> None:
    path = build(tmp_path, "mov $7, %al; out %al, $0xf4; hlt")
    ending = guest.watch(guest.kernel(str(path)))
    assert (ending.verdict, ending.status) == ("unknown", 15)
    path = build(tmp_path, "hlt; jmp start")
    ending = guest.watch(guest.kernel(str(path)), 1)
    assert (ending.verdict, ending.status) == ("unknown", None)
    assert ending.reason.endswith("within 1 seconds: nothing is proved")


MAGIC = (0x1BADB002).to_bytes(4, "little")
MULTIBOOT = "    .long 0x1badb002, 0, -0x1badb002"


@pytest.mark.needs("as", "ld", QEMU)
def test_multiboot(tmp_path: Path) -> None:
    """QEMU refuses it as ELF64, as we say, and runs the copy that we name."""
    path, copy = build(tmp_path, "ud2", MULTIBOOT), tmp_path / "copy"
    with pytest.raises(UsageError, match=r"QEMU does not run this: .*x86-64 image"):
        guest.watch(["-kernel", str(path), "-display", "none"])
    assert "`objcopy -O elf32-i386 KERNEL COPY`" in refused("prove", path, "--on", "qemu")
    subprocess.run(["objcopy", "-O", "elf32-i386", path, copy], check=True)
    assert call("prove", copy, "--on", "qemu", "--expect", "triple-fault")[0] == 0


@pytest.mark.needs("as", "ld")
def test_multiboot_header(tmp_path: Path) -> None:
    data = build(tmp_path, "ud2", MULTIBOOT).read_bytes()
    assert guest._multiboot(data) and not guest._multiboot(data.replace(MAGIC, bytes(4)))
