"""decode --in: the entry that an error code points at in an image, and what is wrong with it."""

import json
from pathlib import Path

import pytest
from cli import output
from kernels import MAPPINGS, K, kernel
from mutated import linux

from x86tables import Gate, PageFaultErrorCode, SelectorErrorCode
from x86tables.checks import error_lookup
from x86tables.commands import main
from x86tables.machine.symbols import Symbols
from x86tables.machine.synthetic import Mapping
from x86tables.render import error_lookup as words

HERE = Path(__file__).parent
LINUX = ["--in", str(HERE / "images/linux.core"), "--symbols", str(HERE / "images/linux.map")]
LINUX32 = ["--in", str(HERE / "images/linux32.core")]
TRIPLE = ["--in", str(HERE / "logs/triple.core.xz"), "--symbols", str(HERE / "logs/triple.elf.xz")]


def found(capsys: pytest.CaptureFixture[str], kind: str, code: int, *image: str) -> list[dict]:  # type: ignore[type-arg]
    assert main(["decode", "--as", kind, hex(code), *image, "--format", "json"]) == 0
    return list(json.loads(capsys.readouterr().out)["in_image"])


def test_a_good_gate_on_every_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    cpus = found(capsys, "error-code", 0x402, *LINUX)
    assert [(cpu["cpu"], cpu["index"], cpu["handler"]) for cpu in cpus] == [
        (0, 128, "asm_int80_emulation"),
        (1, 128, "asm_int80_emulation"),
    ]
    assert all(not cpu["problems"] and not cpu["findings"] for cpu in cpus)
    assert main(["decode", "--as", "error-code", "0x402", *LINUX]) == 0
    assert capsys.readouterr().out.count("asm_int80_emulation") == 1, "CPUs that agree are told once"


def test_a_gate_that_cannot_be_delivered(capsys: pytest.CaptureFixture[str]) -> None:
    """The #DF gate of a kernel that has just shut down: delivery fails at the push, and the rule says why."""
    (cpu,) = found(capsys, "error-code", 8 * 8 + 2, *TRIPLE)
    assert (cpu["handler"], cpu["line"]) == ("double_fault", "kernel.asm:115")
    (problem,) = cpu["problems"]
    assert "0x108ff8" in problem and "PTE not present" in problem and problem.endswith("shutdown")
    assert [finding["rule"] for finding in cpu["findings"]] == ["IDT004"]


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (0x402, "the IDT has no gate 128: its limit 0x1ff covers 32"),
        (0x28, "selector 0x28 is beyond the limit of the GDT, 0x27"),
        (0x1, "no descriptor: the code is 0 apart from EXT"),
        (0xC, "no LDT: LDTR is null"),
    ],
)
def test_what_is_not_there(capsys: pytest.CaptureFixture[str], code: int, wanted: str) -> None:
    (cpu,) = found(capsys, "error-code", code, *TRIPLE)
    assert wanted in cpu["error"]


def test_an_empty_gate(capsys: pytest.CaptureFixture[str]) -> None:
    (cpu,) = found(capsys, "error-code", 5 * 8 + 2, *TRIPLE)
    assert cpu["problems"][0] == "there is no gate: all its bytes are zero"
    assert "gate type" in cpu["problems"][1]


def test_int_from_ring_3(capsys: pytest.CaptureFixture[str]) -> None:
    """EXT=0 means an INT instruction: then the DPL counts; with EXT=1 it does not."""
    told = [found(capsys, "error-code", 0x21 * 8 + 2 + ext, *LINUX)[0]["problems"] for ext in (0, 1)]
    assert told[0] == ["DPL 0: INT 0x21 in ring 3 is refused with this code (EXT=0: an INT)"]
    assert told[1] == []


def test_descriptors(capsys: pytest.CaptureFixture[str]) -> None:
    data, upper = (found(capsys, "error-code", code, *LINUX)[0] for code in (0x18, 0x48))
    assert (data["selector"], data["used_by"], data["problems"]) == (0x18, ["SS"], [])
    assert upper["problems"] == ["slot 9 is the upper half of the tss-busy descriptor at 0x40"]
    (empty, *_) = found(capsys, "error-code", 0x8 * 1, *LINUX32)
    assert empty["problems"] == ["empty: loading it raises #GP"]


def test_the_old_way_of_writing_it(capsys: pytest.CaptureFixture[str]) -> None:
    even, odd = (found(capsys, "error-code", vector * 8 + 2, *LINUX)[0] for vector in (0x60, 0x21))
    assert even["or"].endswith("vector 0x30")
    assert "or" not in odd


@pytest.mark.parametrize("selector", [0x40, 0x80])
def test_gates_whose_segment_is_no_code(selector: int) -> None:
    """#GP(selector) of a gate that names the TSS, or what is beyond the limit of the GDT."""
    image = linux()
    (first, *_) = image.machines
    memory = first.memory.copy()
    assert first.registers.idtr is not None
    place = first.translate(first.registers.idtr.base + 14 * Gate.size)
    memory.overlay(place, bytes(first.idt[14].replace(selector=selector)))
    code = SelectorErrorCode.from_int(selector)
    (cpu,) = error_lookup.selector_error(image, [first.replace(memory=memory)], code)
    wanted = f"not a 64-bit code segment, but used by gate 14: a delivery there raises #GP({selector:#x})"
    assert isinstance(cpu, error_lookup.NamedDescriptor)
    assert (cpu.code_of, words.problems(cpu)) == ((14,), [wanted])
    assert any(wanted[:30] in line for line in words.text([cpu], Symbols()))
    for one in (code, SelectorErrorCode.from_int(0x10)):
        (cpu,) = error_lookup.selector_error(image, [first], one)
        assert words.problems(cpu) == []


@pytest.mark.parametrize("arguments", [["error-code", "0x42"], ["error-code", "0x8"], ["page-fault-error", "0x2"]])
def test_real_mode_has_no_error_codes(arguments: list[str]) -> None:
    address = ["--address", "0x1000"] if arguments[0] == "page-fault-error" else []
    text = output("decode", "--as", *arguments, *address, "--in", HERE / "images/seabios.core")
    assert "neither gates nor error codes" in " ".join(text.split())
    assert "wrong" not in text and "QEMU 7.2" not in text


def test_nothing_is_wrong_only_without_findings() -> None:
    """A gate that the stack in use could deliver now, and that a rule objects to."""
    image = linux("gate 8 without IST")
    found = error_lookup.selector_error(image, image.machines, SelectorErrorCode.from_int(0x42))
    text = "\n".join(words.text(found, Symbols()))
    assert "IDT004 error" in text and "nothing" not in text


@pytest.mark.parametrize(("vector", "old"), [(8190, False), (300, True), (301, False)])
def test_no_idt_has_such_a_gate(capsys: pytest.CaptureFixture[str], vector: int, old: bool) -> None:
    """Vectors end at 255; a code of old QEMU's goes up to twice that."""
    (cpu,) = found(capsys, "error-code", vector * 8 + 2, *TRIPLE)
    assert cpu["error"].startswith(f"no IDT has a gate {vector}: vectors end at 255")
    assert ("or" in cpu) == old


def test_page_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """The write that the kernel died of, and one that would be refused for another reason."""
    address = ["--address", "0x108ff8"]
    (same,) = found(capsys, "page-fault-error", 2, *TRIPLE, *address)
    assert [entry["name"] for entry in same["walk"]] == ["PML4E", "PDPTE", "PDE", "PTE"]
    assert same["walk"][-1]["bits"] == "not present"
    assert same["problems"] == ["faults here in the same way: PTE not present"]
    (other,) = found(capsys, "page-fault-error", 7, *TRIPLE, *address)
    assert other["problems"] == ["faults here with another code, 0x6: PTE not present"]
    (none,) = found(capsys, "page-fault-error", 2, *TRIPLE, "--address", "idt")
    assert "does not fault here" in none["problems"][0]
    assert none["result"].startswith("mapped to 0x")


@pytest.mark.parametrize(("cr0", "wanted"), [(0x8004_0033, "CR0.WP=0"), (0x8005_0033, "faults here in the same way")])
def test_a_read_only_page_that_may_be_written(cr0: int, wanted: str) -> None:
    """The write that a guard page refuses while CR0.WP is 1, on a CPU that has it 0."""
    machine = kernel(mappings=(*MAPPINGS, Mapping("read-only", K + 0x30_0000, 0x1000, "r")), cr0=cr0)
    (page,) = error_lookup.page_fault([machine], PageFaultErrorCode.from_int(3), K + 0x30_0000)
    (problem,) = words.page_problems(page)
    assert wanted in problem and "changed since" not in problem
    (other,) = error_lookup.page_fault([machine], PageFaultErrorCode.from_int(2), K + 0x30_0000)
    assert "CR0.WP=0" not in words.page_problems(other)[0], "a page that was not present is another matter"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--as", "error-code", "0x42", "--address", "0x1000"], "give --in IMAGE"),
        (["--as", "error-code", "0x42", "--address", "0x1000", *TRIPLE], "takes no --address"),
        (["--as", "page-fault-error", "0x2", *TRIPLE], "takes --address ADDR"),
        (["--as", "selector", "0x8", *TRIPLE], "not selector"),
        (["--as", "error-code", "0x42", "--in", "no/such/file"], "there is no such file"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: str) -> None:
    assert main(["decode", *arguments]) == 2
    assert wanted in capsys.readouterr().err
