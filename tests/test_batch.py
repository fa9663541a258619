"""Many translations at once give what one after the other gives, with NumPy and without."""

import random
import sys
from array import array

import pytest
from cli import IMAGES

from x86tables.machine.batch import NOWHERE, one_by_one, translate_all
from x86tables.machine.mappings import build, mappings
from x86tables.machine.memory import PAGE, Memory
from x86tables.machine.paging import AddressSpace, Page, Paging
from x86tables.readers import open_image


def addresses(space: AddressSpace) -> list[int]:
    """Pages that are mapped, neighbours of them, and anything."""
    draw = random.Random(7)
    found = [page.linear + draw.randrange(page.size) for page in mappings(space)][:3000]
    beside = [linear + PAGE & NOWHERE for linear in found[:200]]
    edges = [0, NOWHERE, 1 << 47, (1 << 64) - (1 << 47) - 1]
    return [*found, *beside, *edges, *(draw.getrandbits(64) for _ in range(50))]


@pytest.mark.parametrize("name", ["linux", "xen", "ovmf", "memtest"])
def test_captured_systems(name: str) -> None:
    for core in (f"{name}.core", f"{name}-tables.core.xz"):  # the first holds few of the tables
        for machine in open_image(str(IMAGES / core)).machines:
            wanted = addresses(machine.space)
            random.Random(1).shuffle(wanted)
            assert translate_all(machine.space, wanted) == one_by_one(machine.space, wanted)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("smap", [False, True])
def test_permissions_and_reserved_bits(levels: int, smap: bool) -> None:
    draw = random.Random(levels)
    pages = [
        Page(draw.randrange(1 << 35) * PAGE, draw.randrange(1 << 20) * PAGE, PAGE, user=draw.random() < 0.5)
        for _ in range(200)
    ]
    cr3, tables = build({page.linear: page for page in pages}.values(), 0x10_0000, levels)
    content = bytearray(0x10_0000 + len(tables) * PAGE)
    for at, table in tables.items():
        content[at : at + PAGE] = table
    for _ in range(400):  # large pages, reserved bits, entries without U/S
        content[draw.randrange(0x10_1000, len(content))] ^= 1 << draw.randrange(8)
    memory = Memory([(0, len(content), bytes(content), 0)])
    space = AddressSpace(memory, Paging(f"{levels}-level", cr3, smap=smap, nxe=False, maxphyaddr=40))
    wanted = [page.linear + 5 for page in pages] + addresses(space)
    found = translate_all(space, array("Q", wanted))
    assert found == one_by_one(space, wanted)
    assert NOWHERE in found and len(set(found)) > 50


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    (machine, *_) = open_image(str(IMAGES / "memtest-tables.core.xz")).machines
    wanted = addresses(machine.space)
    found = translate_all(machine.space, wanted)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert translate_all(machine.space, wanted) == found


def test_other_modes() -> None:
    flat = AddressSpace(Memory(), Paging("flat"))
    assert list(translate_all(flat, [0, 5, PAGE])) == [0, 5, PAGE]
