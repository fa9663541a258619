"""Machine: which mode its registers tell of, what is assumed, and its tables and stacks through its page tables."""

from typing import Any

import pytest
import specimens
from specimens import BASE, FRAME, TABLES, registers

from x86tables.delivery.extent import Extent, extent
from x86tables.delivery.scenarios import run_scenario
from x86tables.errors import NotThere
from x86tables.machine.machine import Machine
from x86tables.machine.memory import Memory
from x86tables.machine.paging import NX, P
from x86tables.machine.probe import Unknown
from x86tables.machine.registers import (
    CET,
    LA57,
    LMA,
    LME,
    NXE,
    PAE,
    PCIDE,
    PE,
    PG,
    PSE,
    SMAP,
    SMEP,
    VM,
    WP,
    Registers,
    Segment,
    TableRegister,
)

CODE64, CODE32, CODE16 = 0x00AF_9B00, 0x00CF_9B00, 0x008F_9B00
PAGED = PE | PG
TSS_LOW = BASE + specimens.TSS & 0xFFFF_FFFF


def memory(patches: dict[int, bytes] | None = None) -> Memory:
    data = specimens.memory()
    made = Memory([(FRAME, len(data), data, 0)])
    for address, content in (patches or {}).items():
        made.overlay(address, content)
    return made


def machine(patches: dict[int, bytes] | None = None, **changes: Any) -> Machine:
    """The specimen's machine with other registers."""
    return Machine(registers().replace(**changes), memory(patches))


def cs(flags: int) -> Segment:
    return Segment(8, 0, 0xFFFF_FFFF, flags)


# cr0, cr4, EFER (None: not known), flags of CS (None: not known) -> mode, paging
MODES: list[tuple[int | None, int | None, int | None, int | None, str, str]] = [
    (0x10, 0, None, 0x9B00, "real", "none"),
    (0x10, 0, 0, None, "real", "none"),
    (PE, 0, None, CODE32, "protected32", "none"),
    (PE, 0, 0, CODE32, "protected32", "none"),
    (PE, 0, None, CODE16, "protected16", "none"),
    (PE, 0, None, None, "protected32", "none"),
    (PAGED, 0, None, CODE32, "protected32", "32-bit"),
    (PAGED, PSE, None, CODE16, "protected16", "32-bit"),
    (PAGED, PAE, 0, CODE32, "protected32", "PAE"),
    (PAGED, PAE, NXE, CODE32, "protected32", "PAE"),
    (PAGED, PAE, LME | LMA, CODE64, "long64", "4-level"),
    (PAGED, PAE, LME | LMA, CODE32, "compat", "4-level"),
    (PAGED, PAE, LME | LMA, CODE16, "compat", "4-level"),
    (PAGED, PAE, LME | LMA, None, "long64", "4-level"),
    (PAGED, PAE | LA57, LME | LMA, CODE64, "long64", "5-level"),
    (PAGED, PAE, None, CODE64, "long64", "4-level"),
    (PAGED, PAE, None, CODE32, "compat", "4-level"),  # the tables lie above 4 GiB
    (PE, PAE, LME, CODE32, "protected32", "none"),  # LME set, paging not yet on
    (None, None, None, None, "long64", "4-level"),  # only CR3 is known
    (None, None, None, CODE32, "long64", "4-level"),
]


@pytest.mark.parametrize(("cr0", "cr4", "efer", "flags", "mode", "paging"), MODES)
def test_modes(cr0: int | None, cr4: int | None, efer: int | None, flags: int | None, mode: str, paging: str) -> None:
    found = machine(cr0=cr0, cr4=cr4, efer=efer, cs=None if flags is None else cs(flags))
    assert (found.mode, found.space.paging.mode) == (mode, paging)
    assert found.wide == (mode in ("long64", "compat")) and found.long_mode == found.wide


def test_a_real_mode_cs_does_not_make_16_bit_protected_mode() -> None:
    assert machine(cr0=0x10, cs=Segment(0xF000, 0xF0000, 0xFFFF, 0x9B00)).mode == "real"


def test_virtual_8086_mode() -> None:
    """RFLAGS.VM in protected mode: CS is a paragraph number, the privilege level is 3."""
    paragraph = Segment(0xF000, 0xF0000, 0xFFFF, 0xF300)
    found = machine(cr0=PE, cr4=0, cs=paragraph, rflags=VM | 2)
    assert (found.mode, found.registers.cpl, found.wide) == ("virtual8086", 3, False)
    assert machine(cr0=0x10, cs=paragraph, rflags=VM | 2).mode == "real"
    assert machine(rflags=VM | 2).registers.cpl == 0, "long mode has no such mode"
    assert machine(cs=cs(CODE32), efer=LME | LMA, rflags=VM | 2).registers.cpl == 0


def test_nothing_known_is_flat() -> None:
    found = Machine(Registers(gdtr=TableRegister(FRAME, 0x37)), memory())
    assert (found.mode, found.space.paging.mode) == ("long64", "flat")
    assert found.assumed == ("64-bit mode (no control registers are known)",)
    assert len(found.gdt) == 7


# What is assumed, and that it is said


def test_what_is_known_is_not_assumed() -> None:
    found = Machine(registers().replace(efer=LME | LMA | NXE), memory(), vendor="amd", maxphyaddr=48)
    assert found.assumed == ()
    assert found.nxe and found.space.paging.maxphyaddr == 48


def test_lme_by_cs() -> None:
    assert machine().assumed[0] == "EFER.LME=1 (CS.L, CR0.PG and CR4.PAE are set)"


def test_lme_by_the_page_tables() -> None:
    """Compatibility mode with all tables below 4 GiB: only the shape of the page tables tells."""
    low = {"gdtr": TableRegister(0x1000, 7), "idtr": TableRegister(0x1000, 7), "rip": 0x1000}
    cr3 = {0x20_0000: 0x20_1003, 0x20_1000: 0x20_2003, 0x20_2000: 0x20_3003, 0x20_3008: 0x1003}
    four = {page: bytes(0x1000) for page in range(0x20_0000, 0x20_4000, 0x1000)}
    patches = four | {address: value.to_bytes(8, "little") for address, value in cr3.items()}
    found = machine(patches, cs=cs(CODE32), cr3=0x20_0000, **low)
    assert (found.mode, found.assumed[0]) == ("compat", "EFER.LME=1 (the page tables have four levels)")
    three = {0x20_0000: 0x20_1001, 0x20_1000: 0x20_2003, 0x20_2008: 0x1003}
    patches = four | {address: value.to_bytes(8, "little") for address, value in three.items()}
    found = machine(patches, cs=cs(CODE32), cr3=0x20_0000, **low)
    assert (found.mode, found.assumed[0]) == ("protected32", "EFER.LME=0 (the page tables are PAE's)")
    assert found.translate(0x1008) == 0x1008


LOW = 0x40_0000  # linear: the tables, code and the stack of a CPU that runs 32-bit code


def caught(tables: dict[int, int], code: int = CODE32, core: bool | None = None, **changes: Any) -> Machine:
    """A CPU that runs 32-bit or 16-bit code below 4 GiB, whose EFER is not known, with page-table entries by address.

    The pages of these entries are whole in the image.
    """
    patches: dict[int, bytes] = {page: bytes(0x1000) for page in {address & -0x1000 for address in tables}}
    made = memory(patches)
    for address, value in tables.items():
        made.overlay(address, value.to_bytes(8, "little"))
    low = {"gdtr": TableRegister(LOW, 0x37), "idtr": TableRegister(LOW + specimens.IDT, 0x7F), "rip": LOW + 0x1000}
    chosen = {"cs": cs(code), "cr3": 0x20_0000, "rsp": LOW + 0x2F00, "tr": Segment(0), **low, **changes}
    return Machine(registers().replace(**chosen), made, core=core)


def levels(count: int, top: int, last: dict[int, int]) -> dict[int, int]:
    """Tables at 0x200000, 0x201000, ..., the first entry of each leading to the next; `last` are those of the last."""
    made = {0x20_0000 + 0x1000 * n: 0x20_1000 + 0x1000 * n | (top if n == 0 else 0x63) for n in range(count - 1)}
    return made | {0x20_0000 + 0x1000 * (count - 1) + 8 * n: value for n, value in last.items()}


TABLE = {2: 0x20_8063}  # a PDE, the table of LOW's 2 MiB, in which the first three pages are FRAME's
PAGES = {0x20_8000 + 8 * n: FRAME + 0x1000 * n | 0x63 for n in range(3)}
LARGE = {0: 0xE3}  # a page of 1 GiB


@pytest.mark.parametrize("code", [CODE32, CODE16])
@pytest.mark.parametrize("core", [None, True, False])
def test_compatibility_mode_under_four_levels(code: int, core: bool | None) -> None:
    """A PML4E has R/W, which MOV to CR3 takes in no entry of PAE's."""
    found = caught(levels(3, 0x67, TABLE) | PAGES, code, core)
    assert (found.mode, found.assumed[0]) == ("compat", "EFER.LME=1 (the page tables have four levels)")
    assert len(found.idt) == 8 and found.gdt[8].kind == "code64"


@pytest.mark.parametrize("code", [CODE32, CODE16])
def test_compatibility_mode_with_pages_of_a_gigabyte(code: int) -> None:
    """As PAE's, this PDPTE with PS would be a directory at 0, and lead nowhere or to what is no table."""
    low: dict[str, Any] = {"gdtr": TableRegister(FRAME, 0x37), "idtr": TableRegister(FRAME + specimens.IDT, 0x7F)}
    found = caught(levels(2, 0x23, LARGE), code, rip=FRAME + 0x1000, rsp=FRAME + 0x2F00, **low)
    assert (found.mode, found.space.paging.mode, len(found.idt)) == ("compat", "4-level", 8)


def test_compatibility_mode_under_five_levels() -> None:
    found = caught(levels(4, 0x67, TABLE) | PAGES, cr4=0x6F0 | LA57)
    assert (found.mode, found.assumed[0]) == ("compat", "EFER.LME=1 (the page tables have five levels)")
    assert found.space.paging.mode == "5-level" and len(found.idt) == 8


@pytest.mark.parametrize("top", [0x1, 0x21, 0xE01])  # plain, with the bit that QEMU sets, with bits for software
@pytest.mark.parametrize("core", [None, True, False])
def test_pae_proper(top: int, core: bool | None) -> None:
    """What a core says of CPU 0 does not count where the page tables tell: ours have said 62 of every machine."""
    found = caught(levels(2, top, TABLE) | PAGES, core=core)
    assert (found.mode, found.assumed[0]) == ("protected32", "EFER.LME=0 (the page tables are PAE's)")
    assert found.translate(LOW + 0x1000) == FRAME + 0x1000


def test_memory_that_exists_beats_memory_that_does_not() -> None:
    """PAE's root in the middle of a page; at the page's beginning are entries that could be a PML4's."""
    other = {0x20_0000: 0x20_9023, 0x20_9000: 0x7F_0000_00E3}  # 1 GiB far beyond the image
    pae = {0x20_0020: 0x20_1001, 0x20_1010: 0x20_8063} | PAGES
    assert caught(other | pae, cr3=0x20_0020).mode == "protected32"


@pytest.mark.parametrize(("core", "mode"), [(True, "compat"), (False, "protected32")])
def test_what_the_core_says_counts_where_the_tables_do_not_tell(core: bool, mode: str) -> None:
    found = caught({}, core=core)
    assert (found.mode, found.mode_needs) == (mode, None)
    assert found.assumed[0].startswith(f"EFER.LME={core:d} (the core's headers")
    assert found.replace(found.registers).mode == mode


def test_a_tie_goes_to_nobody() -> None:
    found = caught({})
    assert "EFER" in (found.mode_needs or "") and "nothing decides it" in found.assumed[0]
    overflow = run_scenario("stack-overflow", found)
    assert (overflow.verdict, overflow.needs) == ("unknown", found.mode_needs)


@pytest.mark.parametrize(("changes", "mode"), [({"cr4": 0x6F0 | PCIDE}, "compat"), ({"rflags": VM | 2}, "virtual8086")])
def test_bits_that_only_one_mode_has(changes: dict[str, Any], mode: str) -> None:
    assert caught({}, **changes).mode == mode


def test_bases_that_info_registers_cuts_off() -> None:
    """QEMU prints 8 digits for TR and LDTR unless CS is a 64-bit segment; the descriptors have all bits."""
    text = registers().replace(cs=cs(CODE32), efer=LME | LMA, tr=Segment(0x18, TSS_LOW, 0x67, 0x8B00))
    assert Machine(text, memory()).descriptor_bases() == {"tr": Segment(0x18, BASE + specimens.TSS, 0x67, 0x8B00)}
    for other in (
        text.replace(cs=cs(CODE64)),
        text.replace(tr=Segment(0x18, TSS_LOW + 8)),
        text.replace(tr=Segment(0)),
    ):
        assert Machine(other, memory()).descriptor_bases() == {}


def test_nxe_by_an_entry_with_bit_63() -> None:
    entry = (FRAME | P | NX).to_bytes(8, "little")
    leaf = machine().space
    seen: list[int] = []
    leaf.walk(BASE, lambda found: seen.append(found.address))
    found = machine({seen[-1]: entry})
    assert f"EFER.NXE=1 (the PTE at {seen[-1]:#x} has bit 63)" in found.assumed
    assert not found.space.walk(BASE).executable
    assert machine({seen[-1]: entry}, efer=LME | LMA).table("gdt").error == (  # type: ignore[union-attr]
        f"page fault at {BASE:#x}: PTE has reserved bits {NX:#x} set"
    )


def test_nxe_is_said_to_be_assumed_when_nothing_tells() -> None:
    assert "EFER.NXE=1 (no entry on the walks to the tables decides it)" in machine().assumed
    assert not any("NXE" in text for text in machine(cr0=PE, cr4=0).assumed)
    assert not any("NXE" in text for text in machine(efer=LME | LMA | NXE).assumed)


def test_shadow_stacks() -> None:
    assert machine(cr4=0x6F0 | CET).assumed[-1] == "supervisor shadow stacks off (only CR4.CET is known)"


def test_paging_bits() -> None:
    paging = machine(cr4=0x6F0 | SMEP | SMAP, cr3=TABLES | 0xFFF).space.paging
    assert (paging.root, paging.smep, paging.smap, paging.wp) == (TABLES, True, True, True)
    assert not machine(cr0=0x8005_0033 & ~WP).space.paging.wp


def test_a_variant_is_a_machine_of_its_own() -> None:
    one = machine()
    other = one.replace(registers().replace(cr4=0x6F0 | SMAP), maxphyaddr=40)
    assert (one.space.paging.smap, other.space.paging.smap) == (False, True)
    assert (one.maxphyaddr, other.maxphyaddr, other.gdt) == (52, 40, one.gdt)


# Tables


def test_tables_are_decoded() -> None:
    found = machine()
    assert found.gdt[8].kind == "code64" and len(found.idt) == 8
    assert (found.tss.rsp0, found.tss.ist1) == (BASE + 0x3000, BASE + 0x2000)
    assert found.io_map is None
    assert found.gates == list(found.idt)


def test_tables_of_a_machine_do_not_change() -> None:
    found = machine()
    with pytest.raises(ValueError, match="frozen"):
        found.gdt[8] = found.gdt[0x10]
    with pytest.raises(ValueError, match="frozen"):
        found.idt[0] = found.idt[1]


@pytest.mark.parametrize(
    ("changes", "table", "why"),
    [
        ({"tr": Segment(0, 0, 0xFFFF, 0x8B00)}, "tss", "no TSS: TR is null: never loaded"),
        ({"tr": Segment(3)}, "tss", "no TSS: TR is null: never loaded"),
        ({"tr": None}, "tss", "no TSS: TR is not known"),
        ({"gdtr": None}, "gdt", "no GDT: GDTR is not known"),
        ({"ldtr": Segment(0)}, "ldt", "no LDT: LDTR is null"),
        ({"idtr": TableRegister(BASE + 0x3000, 0xFFF)}, "idt", f"the IDT at {BASE + 0x3000:#x} cannot be read: page"),
    ],
)
def test_tables_that_are_not_there(changes: dict[str, Any], table: str, why: str) -> None:
    with pytest.raises(NotThere, match=why):
        getattr(machine(**changes), table)


def test_a_table_with_a_hole() -> None:
    """Three pages, one that is missing, and the first again."""
    table = machine(gdtr=TableRegister(BASE + 0x2000, 0x2FFF)).table("gdt")
    assert table is not None and table.error is None
    assert [(gap.start, gap.stop) for gap in table.gaps] == [(0x1000, 0x2000)]
    assert table.known(0xFF8, 0x1000) and not table.known(0xFF8, 0x1001) and table.known(0x2000, 0x3000)
    assert table.data[0x1000:0x2000] == bytes(0x1000) and table.data[0x2000:] == specimens.tables()
    assert not table.known(0x2FF8, 0x3001), "beyond the limit nothing is known"


def test_a_table_that_wraps_around_the_end_of_memory() -> None:
    table = machine(gdtr=TableRegister(2**64 - 8, 0xF)).table("gdt")
    assert table is not None and table.error is not None


# Stacks: the address of a stack is its end


def ends(stack: Extent) -> tuple[str | None, str | None]:
    """What ends a stack below and above, in words."""
    below, above = (end.why if end else None for end in (stack.below, stack.above))
    return below, above


def test_a_stack_ends_below_its_pointer() -> None:
    stack = extent(machine(), BASE + 0x3000)
    assert (stack.top, stack.bottom, stack.size) == (BASE + 0x3000, BASE, 0x3000)
    assert ends(stack) == (f"{BASE - 0x1000:#x} is not canonical", "PTE not present")


def test_a_stack_inside_a_page_has_nothing_above_to_say() -> None:
    stack = extent(machine(), BASE + 0x1010)
    assert (stack.size, stack.above) == (0x1010, None)


def test_no_stack_at_all() -> None:
    stack = extent(machine(), BASE + 0x4000)
    assert (stack.size, stack.bottom, ends(stack)[0]) == (0, BASE + 0x4000, "PTE not present")


def test_the_search_for_a_guard_ends() -> None:
    stack = extent(machine(), BASE + 0x3000, most=0x2000)
    assert (stack.size, stack.below) == (0x2000, None)


def test_a_stack_at_the_bottom_of_memory() -> None:
    assert extent(machine(), 0).size == 0


def test_a_page_that_the_image_does_not_hold_is_no_guard() -> None:
    last = machine().space.walk(BASE + 0x2000)
    assert last.size == 0x1000
    seen: list[int] = []
    machine().space.walk(BASE + 0x2000, lambda entry: seen.append(entry.address))
    elsewhere = machine({seen[-2]: (0x7F_F000 | P).to_bytes(8, "little")})  # the page table is not in the image
    for stack in (extent(elsewhere, BASE + 0x3000), extent(elsewhere, BASE + 0x3010)):
        assert not stack.known and stack.below == Unknown("physical page 0x7ff000 is not in this image")
    assert extent(machine(), BASE + 0x3000).known and extent(machine(), BASE + 0x3000, most=0x1000).known


def test_without_page_tables_no_depth_is_claimed() -> None:
    stack = extent(Machine(Registers(gdtr=TableRegister(FRAME, 0x37)), memory()), FRAME + 0x3000)
    assert (stack.size, stack.known, stack.below) == (0, False, Unknown("no page tables without CR3"))
