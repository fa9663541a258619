"""The `trace` command: any one delivery, step by step."""

from typing import Any

import pytest
from cli import IMAGES, fitting, output, refused

import x86tables
from x86tables.delivery.events import Event
from x86tables.render.trace import trace

LINUX = IMAGES / "linux.core"


def traced(*argv: object, image: str = "linux.core") -> Any:
    """The JSON of `trace`; it fits the published schema."""
    return fitting("trace", output("trace", IMAGES / image, *argv, "--format", "json"))


def test_a_page_fault_in_user_mode() -> None:
    document = traced("--cpu", 1, "--vector", "14", "--error-code", "4", "--cr2", "0x1234")
    assert document["schema"] == 1
    assert document["event"] == {"vector": 14, "kind": "exception", "error_code": "0x4"}
    (cpu,) = document["cpus"]
    assert (cpu["cpu"], cpu["outcome"]) == (1, "survives")
    (delivery,) = cpu["deliveries"]
    assert (delivery["vector"], delivery["stack"], delivery["cr2"]) == (14, "RSP0", "0x1234")
    frame = delivery["frame"]
    assert (frame["cs"], frame["ss"], frame["error_code"]) == (0x33, 0x2B, "0x4")
    assert (frame["rip"], frame["rsp"], frame["rflags"]) == ("0x525b80", "0x7ffebe83d120", "0x10246")
    assert bytes.fromhex(frame["raw"])[:16] == (4).to_bytes(8, "little") + (0x525B80).to_bytes(8, "little")
    assert delivery["registers"]["rsp"] == "0xfffffe000003dfd0"
    steps = [row["step"] for row in cpu["trace"]]
    assert steps == [
        "IDT limit", "IDT entry 14", "gate type", "gate P", "GDT limit", "GDT entry 2", "segment DPL",
        "segment P, L, D", "TSS limit", "TSS RSP0", "gate offset", "push", "handler", "fetch", "handler's stack",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "outcome", "vector", "stack"),
    [
        (("--vector", "8"), "survives", 8, "IST1"),
        (("--vector", "#df"), "survives", 8, "IST1"),
        (("--vector", "NMI"), "survives", 2, "IST2"),
        (("--vector", "0x80", "--kind", "int", "--cpl", "3"), "survives", 0x80, "RSP0"),
        (("--vector", "0x20", "--kind", "int", "--cpl", "3"), "survives", 13, "RSP0"),
        (("--vector", "0x20", "--cpl", "3"), "survives", 0x20, "RSP0"),
        (("--vector", "14", "--rsp", "0xffffffff90a00000"), "survives", 8, "IST1"),
        (("--vector", "1", "--kind", "int1"), "survives", 1, "IST3"),
        (("--vector", "1", "--kind", "trap", "--handler-stack", "0"), "survives", 1, "IST3"),
    ],
)
def test_events(argv: tuple[str, ...], outcome: str, vector: int, stack: str) -> None:
    (cpu,) = traced("--cpu", 0, *argv)["cpus"]
    last = cpu["deliveries"][-1]
    assert (cpu["outcome"], last["vector"], last["stack"]) == (outcome, vector, stack)


def test_rip_and_rsp_are_in_the_frame() -> None:
    (cpu,) = traced("--cpu", 0, "--vector", "6", "--rip", "0x1000", "--rsp", "0xffffffff90a03000")["cpus"]
    frame = cpu["deliveries"][0]["frame"]
    assert (frame["rip"], frame["rsp"], "error_code" in frame) == ("0x1000", "0xffffffff90a03000", False)


def test_text() -> None:
    lines = output("trace", LINUX, "--symbols", IMAGES / "linux.map", "--vector", "14", "--cpu", 1).splitlines()
    assert lines[0] == "CPU 1  #PF in ring 3, RIP 0x525b80, RSP 0x7ffebe83d120"
    assert lines[2].split() == [
        "IDT", "entry", "14", "0xfffffe00000000e0", "interrupt", "gate", "to", "0x10:asm_exc_page_fault,",
        "IST", "0,", "DPL", "0",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 100
    every = output("trace", LINUX, "--vector", "14", "--cpu", 1, "--steps").splitlines()
    assert len(every) > len(lines) + 5
    assert len(output("trace", LINUX, "--vector", "14").split("\n\n")) == 2  # two CPUs


def test_registers_that_are_not_known() -> None:
    image, event = x86tables.open(str(LINUX)), Event.exception("#UD")
    before = image.cpu(0).registers.replace(rip=None, rsp=None)
    one = image.simulate(event, registers=before)
    first, *_ = trace(image.snapshot, event, [(image.cpu(0), before, one)], False)
    assert first == "CPU 0  #UD in ring 0, RIP not known, RSP not known"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("--vector", "256"), "a vector is 0..255"),
        (("--vector", "#XY"), "'#XY'"),
        (("--vector", "32", "--kind", "exception"), "exceptions have vectors 0..31, not 32"),
        (("--vector", "32", "--kind", "nmi"), "an NMI has vector 2, not 32"),
        (("--vector", "32", "--error-code", "0"), "only an exception has one"),
        (("--vector", "13", "--cr2", "0"), "only a page fault"),
        (("--vector", "13", "--error-code", "0x100000000"), "an error code has 32 bits"),
    ],
)
def test_usage(argv: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused("trace", LINUX, *argv)


def test_no_cpu_in_long_mode() -> None:
    assert "no CPU is in 64-bit mode" in refused("trace", IMAGES / "grub.core", "--vector", "14")
