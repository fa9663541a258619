"""Declared configurations: what is mapped, what is in it, and what is not known."""

import pytest
from kernels import CODE, CS, DS, GDT, GUARD, IDT, MAPPINGS, STACK, TR, TSS, K, gdt, idt, kernel

from x86tables import Tss
from x86tables.errors import UsageError
from x86tables.machine.paging import Access
from x86tables.machine.probe import Inaccessible
from x86tables.machine.registers import LA57, PAE, Registers
from x86tables.machine.synthetic import Mapping, synthetic_machine


def test_tables_are_where_they_were_put() -> None:
    machine = kernel()
    assert machine.gdt == gdt() and machine.idt == idt()
    assert machine.tss == Tss(rsp0=STACK + 0x4000, ist1=K + 0x25000)
    r = machine.registers
    assert r.gdtr is not None and r.idtr is not None and r.tr is not None and r.cs is not None and r.ss is not None
    assert (r.gdtr.base, r.gdtr.limit, r.idtr.base, r.idtr.limit) == (GDT, gdt().limit, IDT, 0xFFF)
    assert (r.tr.selector, r.tr.base, r.tr.limit) == (TR, TSS, 0x67)
    assert (r.cs.selector, r.ss.selector, r.cpl, machine.mode) == (CS, DS, 0, "long64")


def test_permissions_and_data() -> None:
    machine = synthetic_machine(
        [Mapping("a", 0x1000, 0x2000, "r", b"abc"), Mapping("b", 0x5000, 0x1000, "rwxu")], complete=True
    )
    assert machine.read(0x1000, 5) == b"abc\0\0"
    with pytest.raises(Inaccessible, match="page fault"):
        machine.translate(0x1000, Access(write=True))
    with pytest.raises(Inaccessible, match="page fault"):
        machine.translate(0x1000, Access(fetch=True))
    machine.translate(0x5000, Access(write=True, user=True))
    machine.translate(0x5000, Access(fetch=True, user=True))


def test_what_is_not_declared() -> None:
    mappings = [Mapping("a", 0x1000, 0x1000), Mapping("guard", 0x2000, 0x1000, "")]
    with pytest.raises(Inaccessible, match="page fault"):
        synthetic_machine(mappings).translate(0x2000)
    with pytest.raises(Inaccessible, match="the configuration says nothing of"):
        synthetic_machine(mappings).translate(0x3000)
    with pytest.raises(Inaccessible, match="page fault"):
        synthetic_machine(mappings, complete=True).translate(0x3000)


def test_pages_for_tables_are_added() -> None:
    machine = synthetic_machine([], gdt=(GDT + 0xFF8, gdt()), idt=(IDT + 0x2008, idt()), complete=True)
    assert machine.gdt == gdt() and machine.idt == idt()
    machine.translate(GDT + 0x1000)


def test_a_table_over_two_areas() -> None:
    mappings = [Mapping("low", IDT, 0x1000), Mapping("high", IDT + 0x1000, 0x1000)]
    assert synthetic_machine(mappings, idt=(IDT + 0x800, idt()), complete=True).idt == idt()


def test_registers_given_win() -> None:
    machine = synthetic_machine(MAPPINGS, gdt=(GDT, gdt()), registers=Registers(rip=CODE, cr4=PAE | LA57, rflags=0x46))
    assert (machine.registers.rip, machine.registers.rflags) == (CODE, 0x46)
    assert machine.space.paging.mode == "5-level"
    machine.translate(GDT)


@pytest.mark.parametrize(
    ("mappings", "sentence"),
    [
        ([Mapping("a", 0x1001, 0x1000)], "a: address 0x1001 and size 0x1000 are multiples of 0x1000"),
        ([Mapping("a", 0x1000, 0)], "a: address 0x1000 and size 0x0 are multiples of 0x1000"),
        ([Mapping("a", 0x1000, 0x1000, "rq")], "a: permission 'q': the letters are r, w, x and u"),
        ([Mapping("a", 0x1000, 0x1000, "r", bytes(0x1001))], "a: 4097 bytes of data do not fit into 0x1000"),
        ([Mapping("a", 0x1000, 0x2000), Mapping("b", 0x2000, 0x1000)], "0x2000 is mapped already"),
        ([Mapping("a", 1 << 47, 0x1000)], "is not canonical"),
    ],
)
def test_mistakes(mappings: list[Mapping], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence.replace("(", "\\(")):
        synthetic_machine(mappings)


def test_the_guard_of_the_test_kernel_is_one() -> None:
    with pytest.raises(Inaccessible, match="page fault"):
        kernel().translate(GUARD)
