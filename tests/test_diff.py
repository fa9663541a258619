"""Two machines compared: nothing but what was changed, wherever the kernel lies."""

import json
import re
from typing import Any

import pytest
from cli import IMAGES, call, fitting, output, refused
from hypothesis import given
from hypothesis import strategies as st
from kernels import CODE, GDT, IDT, IST, MAPPINGS, TOP, TSS, gate, idt, kernel

from x86tables import Gate, SegmentDescriptor, Tss
from x86tables.assessment import Assessment, assess
from x86tables.checks import judge
from x86tables.difference import Comparison, compare
from x86tables.machine.image import Snapshot
from x86tables.machine.machine import Machine
from x86tables.machine.memory import Memory
from x86tables.machine.registers import PAE, SMEP
from x86tables.machine.symbols import Symbols


def compared(one: Machine, other: Machine, names: tuple[Symbols, Symbols] = (Symbols(), Symbols())) -> Comparison:
    """Two machines, each in an image of its own."""

    def judged(machine: Machine) -> Assessment:
        (report,) = judge(Snapshot("", "elfcore", machine.memory, (machine,), Symbols(), (), b"", {}))
        return assess(report)

    return compare(judged(one), judged(other), names)


def rows(found: Comparison) -> list[tuple[object, ...]]:
    """The differences of tables and registers."""
    judged = ("verdict", "stack", "finding")
    return [tuple(one) for one in found.differences if one.table not in judged]


@pytest.mark.parametrize("name", sorted(path.stem for path in IMAGES.glob("*.core")))
def test_an_image_is_like_itself(name: str) -> None:
    path = IMAGES / f"{name}.core"
    text = output("diff", path, path)
    assert text.count("no difference") == text.count("\nCPU ")
    document = fitting("diff", output("diff", path, path, "--format", "json"))
    assert document["same"] and all(cpu["differences"] == [] == cpu["relocated"] for cpu in document["cpus"])


CHANGED: dict[str, tuple[dict[str, Any], list[tuple[object, ...]]]] = {
    "a hooked gate": (
        {"gates": gate(14, offset=CODE + 0x1234)}, [("idt", 14, "offset", CODE + 14 * 16, CODE + 0x1234)],
    ),
    "a gate for anybody": ({"gates": gate(13, dpl=3)}, [("idt", 13, "dpl", 0, 3)]),
    "no IST": ({"gates": gate(8, ist=0)}, [("idt", 8, "ist", 1, 0)]),
    "a gate gone": ({"gates": {"g33": Gate()}}, [("idt", 33, "", "a gate", None)]),
    "a stack": ({"tss": Tss(rsp0=TOP, ist1=IST - 0x1000)}, [("tss", None, "ist1", IST, IST - 0x1000)]),
    "a segment more": (
        {"segments": (SegmentDescriptor.user_data(),)},
        [("gdt", 0x40, "", None, "data"), ("gdtr", None, "limit", 0x3F, 0x47)],
    ),
    "protection": ({"cr4": PAE | SMEP}, [("cr4", None, "SMEP", False, True)]),
    "a stack pointer": ({"rsp": TOP - 0x200}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_one_thing_changed(name: str) -> None:
    changes, expected = CHANGED[name]
    found = compared(kernel(), kernel(**changes))
    assert rows(found) == expected and found.moved == 0 and not found.relocated
    back = compared(kernel(**changes), kernel())
    assert rows(back) == [(*row[:3], row[4], row[3]) for row in expected]


def test_what_it_leads_to() -> None:
    found = compared(kernel(), kernel(gates=gate(8, ist=0)))
    judged = {(one.table, one.field, one.before, one.after) for one in found.differences if one.table != "idt"}
    assert ("verdict", "", "survives", "triple-fault") in judged
    assert ("finding", "IDT004 idt[8].ist", None, "error") in judged


def moved(by: int) -> Machine:
    """The good kernel so many bytes further up."""
    gates = {f"g{vector}": each.replace(offset=each.offset + by) for vector, each in enumerate(idt())}
    mapped = tuple(each.replace(address=each.address + by) if each.name == "code" else each for each in MAPPINGS)
    return kernel(mappings=mapped, gates=gates, rip=CODE + by)


def test_a_kernel_that_moved_is_the_same() -> None:
    found = compared(kernel(), moved(0x20_0000))
    assert (rows(found), found.moved) == ([], 0x20_0000)


def test_a_gate_that_did_not_move_with_the_others() -> None:
    there = moved(0x20_0000)
    memory = there.memory.copy()
    hooked = there.idt[14].replace(offset=CODE + 0x55)
    memory.overlay(there.translate(IDT + 14 * 16), bytes(hooked))
    found = compared(kernel(), there.replace(memory=memory))
    assert rows(found) == [("idt", 14, "offset", CODE + 14 * 16, CODE + 0x55)]


def test_handlers_of_another_build_are_known_by_their_names() -> None:
    """Each at another distance."""
    gates = {f"g{vector}": each.replace(offset=each.offset + vector * 8) for vector, each in enumerate(idt())}
    names = tuple(
        Symbols((each.offset, f"isr_{vector}") for vector, each in enumerate(machine.idt))
        for machine in (kernel(), kernel(gates=gates))
    )
    assert len(rows(compared(kernel(), kernel(gates=gates)))) > 200
    found = compared(kernel(), kernel(gates=gates), (names[0], names[1]))
    assert (rows(found), found.moved) == ([], None)


TABLES = {"idt": (IDT, 0x1000), "gdt": (GDT, 0x40), "tss": (TSS, 0x68)}


@given(st.sampled_from(sorted(TABLES)), st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_byte_of_a_table_is_a_difference_of_its_entry(name: str, place: int, bits: int) -> None:
    machine = kernel()
    base, size = TABLES[name]
    at = place % size
    memory: Memory = machine.memory.copy()
    physical = machine.translate(base + at)
    memory.overlay(physical, bytes([memory.read(physical, 1)[0] ^ bits]))
    found = rows(compared(machine, machine.replace(memory=memory)))
    if name == "tss":
        unused = at < 4 or 12 <= at < 36 or 92 <= at < 102  # reserved, and RSP1 and RSP2
        assert all(row[0] == "tss" for row in found) and bool(found) != unused
    elif name == "idt":
        assert {row[:2] for row in found} == {("idt", at // 16)}
    elif at >= 8:
        assert {row[0] for row in found} == {"gdt"}
        # a half of one that is wide; or the slot becomes wide itself, and takes in the first half of a wide one
        assert {row[1] for row in found} <= {(at & ~7) + step for step in (-8, 0, 8, 16)}


def test_cpus_of_one_machine() -> None:
    """What each has for itself is no difference; a TSS that two share would be a finding."""
    text = call("diff", f"{IMAGES / 'linux.core'}#0", f"{IMAGES / 'linux.core'}#1")[1]
    assert "own      0x40 base, RSP0, IST1, IST2, IST3, IST4, IST5, GDT base, TSS base" in " ".join(text.split("\n"))
    assert re.search(r"^CPU 0 -> CPU 1  1 difference$", text, re.M)
    assert "GDT      0x78 limit: 0x0 -> 0x1" in text.splitlines()[-1], "Linux has the CPU's number there"


def test_two_kernels() -> None:
    status, text, _ = call("diff", IMAGES / "linux.core", IMAGES / "cloud.core")
    assert status == 1 and "moved    all handlers by +0xf200000" in text
    assert "gates 1,8,29 handler: moved by +0xf1fffa0" in text
    document = json.loads(call("diff", IMAGES / "linux.core", IMAGES / "cloud.core", "--format", "json")[1])
    assert not document["same"] and document["cpus"][0]["moved"] == "0xf200000"


def test_what_cannot_be_compared() -> None:
    assert refused("diff", IMAGES / "linux.core", f"{IMAGES / 'linux.core'}#x").endswith(
        "FILE#CPU expected, CPU a number"
    )
    assert "--cpu 7" in refused("diff", IMAGES / "linux.core", f"{IMAGES / 'linux.core'}#7")
