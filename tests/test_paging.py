"""Page tables: each kind of walk by hand, permissions, faults and their error codes, and building as the inverse."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x86tables.errors import UsageError
from x86tables.machine.mappings import build, mappings
from x86tables.machine.memory import Memory
from x86tables.machine.paging import (
    NX,
    PS,
    READ,
    RW,
    US,
    WRITE,
    Access,
    AddressSpace,
    P,
    Page,
    Paging,
    canonical,
    root,
    sign_extend,
)
from x86tables.machine.probe import Absent, Fault, FaultKind, Inaccessible, Ok, PageEntry, Unknown

ALL = P | RW | US
FETCH, USER = Access(fetch=True), Access(user=True)


def space(entries: dict[int, int], width: int = 8, **paging: Any) -> AddressSpace:
    """An address space whose root is 0x1000, from physical address -> entry; the pages of the entries are known."""
    memory = Memory((page, 0x1000, bytes(0x1000), 0) for page in {address & -0x1000 for address in entries})
    for address, value in entries.items():
        memory.overlay(address, value.to_bytes(width, "little"))
    return AddressSpace(memory, Paging(**{"root": 0x1000, **paging}))


def four(pte: int = 0x7000 | ALL, *, pml4e: int = 0, pdpte: int = 0, pde: int = 0, **paging: Any) -> AddressSpace:
    """Four levels that map linear 0x0123_4567_8000: indices 2, 141, 43, 120."""
    entries = {
        0x1000 + 8 * 2: pml4e or 0x2000 | ALL,
        0x2000 + 8 * 141: pdpte or 0x3000 | ALL,
        0x3000 + 8 * 43: pde or 0x4000 | ALL,
        0x4000 + 8 * 120: pte,
    }
    return space(entries, **paging)


LINEAR = 0x0123_4567_8000


def fault(call: Callable[[], object]) -> Fault:
    with pytest.raises(Inaccessible) as caught:
        call()
    assert isinstance(caught.value.probe, Fault)
    return caught.value.probe


# The walks


def test_four_levels() -> None:
    found = four().walk(LINEAR + 0xABC)
    assert found == Page(LINEAR, 0x7000, 0x1000, True, True, True)
    assert four().translate(LINEAR + 0xABC) == 0x7ABC


def test_a_walk_tells_what_it_read() -> None:
    seen: list[PageEntry] = []
    four().walk(LINEAR, seen.append)
    assert [(entry.name, entry.address) for entry in seen] == [
        ("PML4E", 0x1010),
        ("PDPTE", 0x2468),
        ("PDE", 0x3158),
        ("PTE", 0x43C0),
    ]
    assert seen[-1].value == 0x7000 | ALL


def test_two_mebibytes() -> None:
    found = four(pde=0xA0_0000 | ALL | PS).walk(LINEAR)
    assert found == Page(LINEAR & -0x20_0000, 0xA0_0000, 0x20_0000, True, True, True)
    assert four(pde=0xA0_0000 | ALL | PS).translate(LINEAR + 5) == 0xA0_0000 + 0x7_8005


def test_one_gibibyte() -> None:
    found = four(pdpte=0x1_4000_0000 | ALL | PS)
    assert found.walk(LINEAR).size == 1 << 30
    assert found.translate(LINEAR + 5) == 0x1_4000_0000 + (LINEAR & 0x3FFF_FFFF) + 5


def test_five_levels() -> None:
    linear = 0x00AB_0000_0000_0000 | LINEAR
    entries = {0x1000 + 8 * 0xAB: 0x5000 | ALL, 0x5010: 0x2000 | ALL, 0x2468: 0x3000 | ALL, 0x3158: 0x4000 | ALL}
    found = space(entries | {0x43C0: 0x9000 | P | NX}, mode="5-level")
    assert found.walk(linear) == Page(linear, 0x9000, 0x1000, False, False, False)
    assert fault(lambda: found.walk(1 << 56)).kind is FaultKind.NON_CANONICAL
    assert fault(lambda: four().walk(linear)).kind is FaultKind.NON_CANONICAL


def test_pae() -> None:
    """Four PDPTEs without permissions at a root that is aligned to 32 bytes; 2 MiB pages."""
    linear = 0xC123_4000
    entries = {0x1020 + 8 * 3: 0x2000 | P, 0x2000 + 8 * 9: 0x3000 | P | RW, 0x3000 + 8 * 0x34: 0x8000 | P | RW | NX}
    found = space(entries | {0x2000 + 8 * 10: 0xA0_0000 | P | US | PS}, mode="PAE", root=root(0x1020, "PAE"))
    assert found.walk(linear) == Page(linear, 0x8000, 0x1000, True, False, False)
    assert found.walk(0xC145_6789) == Page(0xC140_0000, 0xA0_0000, 0x20_0000, False, True, True)
    assert fault(lambda: found.walk(0x1000)).why == "PDPTE not present"


def test_a_pae_table_that_names_itself_as_a_directory() -> None:
    """The top table has 32 bytes, the directory at the same address 4096: one must not be taken for the other."""
    found = space({0x1000: 0x1000 | P, 0x1008: 0x1000 | P}, mode="PAE")
    assert found.translate(0x1234) == 0x1234
    assert fault(lambda: found.translate(0x20_0000 * 5)).why == "PDE not present"
    assert found.translate(0x4000_0000) == 0x1000


def test_pae_knows_no_bits_from_52_to_62() -> None:
    entries = {0x1000: 0x2000 | P, 0x2000: 0x3000 | P | 1 << 55}
    assert fault(lambda: space(entries, mode="PAE").walk(0)).error_code == 9


def test_32_bit() -> None:
    entries = {0x1000 + 4 * 0x300: 0x2000 | P | RW, 0x2000 + 4 * 0x45: 0x8000 | P | US}
    found = space(entries, 4, mode="32-bit")
    assert found.walk(0xC004_5678) == Page(0xC004_5000, 0x8000, 0x1000, False, False, True)
    assert found.walk(0xFFFF_FFFF_C004_5678).physical == 0x8000, "addresses wrap at 32 bits"


def test_four_mebibytes_and_pse_36() -> None:
    """Bits 20:13 of a 4 MiB entry are bits 39:32 of the address; without CR4.PSE bit 7 means nothing."""
    entries = {0x1000 + 4 * 0x300: 0x0080_0000 | 0xAB << 13 | P | RW | PS}
    found = space(entries, 4, mode="32-bit")
    assert found.walk(0xC012_3456) == Page(0xC000_0000, 0xAB_0080_0000, 0x40_0000, True, False, True)
    assert list(mappings(found)) == [found.walk(0xC012_3456)]
    without = space({0x1000: 0x2000 | P | PS, 0x2000: 0x5000 | P}, 4, mode="32-bit", pse=False)
    assert without.walk(0).physical == 0x5000
    assert fault(lambda: space({0x1000: 1 << 21 | P | PS}, 4, mode="32-bit").walk(0)).error_code == 9


def test_no_paging() -> None:
    found = AddressSpace(Memory(), Paging(mode="none"))
    assert found.translate(0x1_2345_6789) == 0x2345_6789, "32 bits, and no tables are read"
    assert AddressSpace(Memory(), Paging(mode="flat")).translate(0x1_2345_6789) == 0x1_2345_6789
    assert list(mappings(found)) == []


@pytest.mark.parametrize(
    ("mode", "cr3", "expected"),
    [
        ("4-level", 0x8000_0000_1234_5FFF, 0x1234_5000),  # bit 63 (no flush), PCID
        ("5-level", 0x6000_0000_1234_5018, 0x1234_5000),  # LAM
        ("PAE", 0x1234_5FFF, 0x1234_5FE0),
        ("32-bit", 0x1234_5FFF, 0x1234_5000),
    ],
)
def test_cr3_is_masked(mode: str, cr3: int, expected: int) -> None:
    assert root(cr3, mode) == expected


# What the levels say together


@pytest.mark.parametrize("level", ["pml4e", "pdpte", "pde", "pte"])
def test_permissions_are_those_of_all_levels(level: str) -> None:
    place = {"pml4e": 0x2000, "pdpte": 0x3000, "pde": 0x4000, "pte": 0x7000}[level]

    def rights(bits: int) -> tuple[bool, bool, bool]:
        page = four(**{level: place | bits}).walk(LINEAR)
        return page.writable, page.user, page.executable

    assert rights(P | US) == (False, True, True)
    assert rights(P | RW) == (True, False, True)
    assert rights(ALL | NX) == (True, True, False)


@pytest.mark.parametrize("level", ["pml4e", "pdpte", "pde", "pte"])
def test_not_present_at_any_level(level: str) -> None:
    """Bit 0 decides alone; the error code tells of the access, not of the level."""
    entry = RW | US | 0x1234_0000
    found = fault(lambda: four(**{level: entry}).translate(LINEAR, Access(write=True, user=True)))
    assert (found.error_code, found.why) == (0b110, f"{level.upper()} not present")
    assert found.entry is not None and (found.entry.name, found.entry.value) == (level.upper(), entry)
    assert found.address == LINEAR


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"pml4e": 0x2000 | ALL | PS}, PS),
        ({"pdpte": 0x4000_2000 | ALL | PS}, 0x2000),  # bits 29:13 of a 1 GiB page
        ({"pde": 0x0020_2000 | ALL | PS}, 0x2000),  # bits 20:13 of a 2 MiB page
        ({"pte": 1 << 46 | ALL, "maxphyaddr": 46}, 1 << 46),
        ({"pde": 1 << 39 | 0x4000 | ALL, "maxphyaddr": 39}, 1 << 39),
        ({"pte": 0x7000 | ALL | NX, "nxe": False}, NX),
    ],
)
def test_reserved_bits(changes: dict[str, int], wrong: int) -> None:
    found = fault(lambda: four(**changes).translate(LINEAR, WRITE))
    assert found.error_code == 0b1011
    assert f"reserved bits {wrong:#x} set" in found.why


def test_reserved_bits_that_are_none() -> None:
    assert four(1 << 45 | ALL, maxphyaddr=46).translate(LINEAR) == 1 << 45
    assert four(0x7000 | ALL | PS).translate(LINEAR) == 0x7000, "PAT in a PTE"
    assert four(pde=0x20_1000 | ALL | PS).translate(LINEAR) == 0x20_0000 + (LINEAR & 0x1F_FFFF), "PAT in a large page"
    assert four(0x7000 | ALL | 0x7FF << 52, pde=0x4000 | ALL | 0x7FF << 52).translate(LINEAR) == 0x7000, "software's"


# Access rights: (page, access, paging) -> error code, or None for allowed

SUPERVISOR, SUPERVISOR_RO, USERS = P | RW, P, P | RW | US
RIGHTS = [
    (SUPERVISOR, READ, {}, None),
    (SUPERVISOR, WRITE, {}, None),
    (SUPERVISOR, FETCH, {}, None),
    (SUPERVISOR, USER, {}, 0b101),
    (SUPERVISOR, Access(write=True, user=True), {}, 0b111),
    (SUPERVISOR, Access(fetch=True, user=True), {}, 0b10101),
    (SUPERVISOR_RO, WRITE, {}, 0b011),
    (SUPERVISOR_RO, WRITE, {"wp": False}, None),
    (SUPERVISOR_RO | US, Access(write=True, user=True), {"wp": False}, 0b111),
    (USERS, READ, {}, None),
    (USERS, READ, {"smap": True}, 0b001),
    (USERS, Access(), {"smap": True}, 0b001),
    (USERS, Access(ac=True), {"smap": True}, None),
    (USERS, Access(ac=True, implicit=True), {"smap": True}, 0b001),  # RFLAGS.AC lifts explicit accesses only
    (USERS, Access(write=True), {"smap": True}, 0b011),
    (USERS, FETCH, {"smap": True}, None),
    (USERS, FETCH, {"smep": True}, 0b10001),
    (USERS, FETCH, {"smep": True, "nxe": False}, 0b10001),
    (USERS, Access(fetch=True, user=True), {"smep": True}, None),
    (USERS, USER, {"smap": True}, None),
    (SUPERVISOR | NX, FETCH, {}, 0b10001),
    (SUPERVISOR | NX, READ, {}, None),
    (USERS | NX, Access(fetch=True, user=True), {}, 0b10101),
]


@pytest.mark.parametrize(("bits", "access", "paging", "expected"), RIGHTS)
def test_access_rights(bits: int, access: Access, paging: dict[str, bool], expected: int | None) -> None:
    found = four(0x7000 | bits, **paging)
    if expected is None:
        assert found.translate(LINEAR + 8, access) == 0x7008
    else:
        refused = fault(lambda: found.translate(LINEAR + 8, access))
        assert (refused.error_code, refused.address) == (expected, LINEAR + 8)
        assert refused.entry is not None and refused.entry.name == "PTE"


def test_a_fetch_is_told_only_where_nx_or_smep_is_on() -> None:
    assert fault(lambda: four(pte=0, nxe=False).translate(LINEAR, FETCH)).error_code == 0
    assert fault(lambda: four(pte=0, nxe=False, smep=True).translate(LINEAR, FETCH)).error_code == 0b10000
    assert fault(lambda: four(pte=0).translate(LINEAR, FETCH)).error_code == 0b10000


# Absent, non-canonical, reading


def test_a_probe_is_one_of_three_answers() -> None:
    assert four().probe(LINEAR + 8) == Ok(0x7008)
    refused = four(0x7000 | P).probe(LINEAR, WRITE)
    assert isinstance(refused, Fault) and (refused.kind, refused.error_code) == (FaultKind.READ_ONLY, 0b11)
    assert four(pde=0x5_5000 | ALL).probe(LINEAR) == Unknown("physical page 0x55000 is not in this image")
    outside = four().probe(1 << 47)
    assert isinstance(outside, Fault) and str(outside) == "0x800000000000 is not canonical"


def test_a_table_that_is_not_in_the_image() -> None:
    with pytest.raises(Absent) as caught:
        four(pde=0x5_5000 | ALL).walk(LINEAR)
    assert caught.value.address == 0x5_5000 + 8 * 120
    assert list(mappings(four(pde=0x5_5000 | ALL))) == []


def test_a_page_need_not_be_there_to_be_found() -> None:
    found = four()
    assert found.translate(LINEAR) == 0x7000
    with pytest.raises(Absent) as caught:
        found.read(LINEAR + 0xFF8, 8)
    assert caught.value.address == 0x7FF8


def test_reading_goes_on_in_the_next_page() -> None:
    entries = {0x1000: 0x2000 | ALL, 0x2000: 0x3000 | ALL, 0x3000: 0x4000 | ALL, 0x4000: 0x9000 | P, 0x4008: 0x8000 | P}
    found = space(entries | {0x4010: 0})
    found.memory.overlay(0x8000, b"second" + bytes(0xFFA))
    found.memory.overlay(0x9000, bytes(0xFFB) + b"first")
    assert found.read(0xFFB, 11) == b"firstsecond"
    assert len(found.read(0, 0x2000)) == 0x2000
    stopped = fault(lambda: found.read(0x1FFF, 4))
    assert (stopped.address, stopped.why) == (0x2000, "PTE not present"), "the first byte that failed"


@pytest.mark.parametrize(
    ("address", "levels", "expected"),
    [
        (0x7FFF_FFFF_FFFF, 4, True),
        (0x8000_0000_0000, 4, False),
        (0xFFFF_7FFF_FFFF_FFFF, 4, False),
        (0xFFFF_8000_0000_0000, 4, True),
        (0x8000_0000_0000, 5, True),
        (1 << 56, 5, False),
        (0xFF00_0000_0000_0000, 5, True),
    ],
)
def test_canonical(address: int, levels: int, expected: bool) -> None:
    assert canonical(address, levels) == expected


@given(st.integers(0, 2**64 - 1))
def test_sign_extension_makes_canonical(address: int) -> None:
    assert canonical(sign_extend(address & (1 << 48) - 1, 48))
    assert canonical(sign_extend(address & (1 << 57) - 1, 57), 5)


# Listing and building


def test_mappings_of_both_halves_in_order() -> None:
    entries = {0x1008: 0x2000 | ALL, 0x1FF8: 0x2000 | ALL, 0x2000: PS | ALL, 0x2008: 0x4000_0000 | PS | P}
    pages = [(page.linear, page.physical, page.size, page.writable) for page in mappings(space(entries))]
    gib = 1 << 30
    assert pages == [
        (1 << 39, 0, gib, True),
        ((1 << 39) + gib, gib, gib, False),
        (0xFFFF_FF80_0000_0000, 0, gib, True),
        (0xFFFF_FF80_0000_0000 + gib, gib, gib, False),
    ]


def test_a_root_that_points_at_itself() -> None:
    """The recursive mapping of many small kernels: the tables appear as pages."""
    found = space({0x1FF8: 0x1000 | P | RW})
    assert [page.linear for page in mappings(found)] == [0xFFFF_FFFF_FFFF_F000]
    assert found.translate(0xFFFF_FFFF_FFFF_F008) == 0x1008


PAGES = st.builds(
    Page,
    linear=st.integers(0, 2**36 - 1).map(lambda n: sign_extend(n << 12, 48)),
    size=st.integers(1, 5).map(lambda n: n << 12),
    physical=st.integers(0, 2**30).map(lambda n: n << 12),
    writable=st.booleans(),
    user=st.booleans(),
    executable=st.booleans(),
)


@given(st.lists(PAGES, max_size=5), st.sampled_from([4, 5]))
def test_what_is_built_is_what_is_mapped(pages: list[Page], levels: int) -> None:
    expected: dict[int, Page] = {}
    for page in pages:
        for offset in range(0, page.size, 0x1000):
            linear = page.linear + offset
            if linear in expected or not canonical(linear, levels) or linear >> 64:
                with pytest.raises(UsageError):
                    build(pages, 0x1000, levels)
                return
            rights = page.writable, page.user, page.executable
            expected[linear] = Page(linear, page.physical + offset, 0x1000, *rights)
    cr3, tables = build(pages, 0x1000, levels)
    assert sorted(tables) == list(range(0x1000, 0x1000 * (len(tables) + 1), 0x1000))
    memory = Memory((address, 0x1000, data, 0) for address, data in tables.items())
    found = AddressSpace(memory, Paging(mode=f"{levels}-level", root=cr3))
    assert {page.linear: page for page in mappings(found)} == expected
    for linear, page in expected.items():
        assert found.walk(linear + 0xFFF) == page


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (Page(0x1234, 0, 0x1000), "multiples of 0x1000"),
        (Page(0x1000, 0, 0x800), "multiples of 0x1000"),
        (Page(0x7FFF_FFFF_F000, 0, 0x2000), "0x800000000000 is not canonical"),
    ],
)
def test_build_refuses(page: Page, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        build([page], 0x1000)


def test_build_refuses_overlaps() -> None:
    with pytest.raises(UsageError, match="0x2000 is mapped already"):
        build([Page(0x1000, 0, 0x2000), Page(0x2000, 0, 0x1000)], 0x10000)


def test_tables_are_pages_of_512_entries() -> None:
    cr3, tables = build([Page(0, 0xABC000, 0x1000, writable=False, executable=False)], 0x10000)
    assert cr3 == 0x10000 and [len(page) for page in tables.values()] == [0x1000] * 4
    assert struct.unpack_from("<Q", tables[0x13000]) == (0xABC000 | P | NX,)
