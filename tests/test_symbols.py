"""Names for addresses, where they come from, and how far a kernel was moved."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import specimens
from cli import IMAGES, output
from hypothesis import given
from hypothesis import strategies as st
from specimens import BASE

from x86tables.errors import ImageError, NotThere
from x86tables.machine import symbols as module
from x86tables.machine.image import OpenOptions
from x86tables.machine.symbols import Symbols, parse_map, printable, readable
from x86tables.readers import address, open_image, read_symbols

KERNEL = Symbols([(0x1000, "start"), (0x1010, "handler"), (0x1010, "alias"), (0x9000, "gdt"), (0x9100, "twice")])


@pytest.mark.parametrize(
    ("where", "name"),
    [(0xFFF, None), (0x1000, "start"), (0x100F, "start+0xf"), (0x1010, "alias"), (0x1018, "alias+0x8")],
)
def test_the_nearest_symbol_below(where: int, name: str | None) -> None:
    assert KERNEL.name(where) == name


def test_far_from_any_symbol_there_is_no_name() -> None:
    assert KERNEL.name(0x9100 + 0x10000) == "twice+0x10000"
    assert KERNEL.name(0x9100 + 0x10001) is None
    assert KERNEL.name(0x9110, reach=0xF) is None


def test_addresses_by_name() -> None:
    assert KERNEL.address("gdt") == 0x9000
    with pytest.raises(NotThere, match="no symbol 'idt'"):
        KERNEL.address("idt")
    with pytest.raises(NotThere, match="ambiguous: 0x1, 0x2"):
        Symbols([(1, "same"), (2, "same")]).address("same")
    assert Symbols([(1, "same"), (1, "same")]).address("same") == 1


def test_what_the_command_line_calls_an_address() -> None:
    assert [address(text, KERNEL) for text in ("0x9000", "4096", "gdt")] == [0x9000, 0x1000, 0x9000]
    assert [address(text, KERNEL) for text in ("gdt+0x10", "gdt-16", "gdt+7")] == [0x9010, 0x8FF0, 0x9007]
    assert address("start-0x1001", KERNEL) == (1 << 64) - 1, "addresses wrap"
    assert address("f+1", Symbols([(1, "f"), (9, "f+1")])) == 9, "a name may have such characters itself"
    assert KERNEL.name(address("alias+0x8", KERNEL)) == "alias+0x8", "what is shown can be given"
    with pytest.raises(ValueError, match="no symbol 'idt'"):
        address("idt", KERNEL)
    kinds = r"^--stack: 'idt\+0x10': an address is 0x..., decimal, a symbol, or symbol\+0x10; no symbol 'idt'$"
    with pytest.raises(ValueError, match=kinds):
        address("idt+0x10", KERNEL, "--stack")
    for wrong in ("gdt+", "gdt+x", "+16", "gdt+0x10+0x10", "gdt+1 "):
        with pytest.raises(ValueError, match=r"no symbol|is not a number"):
            address(wrong, KERNEL)
    with pytest.raises(ValueError, match="give --symbols"):
        address("idt", Symbols())


def test_moving_wraps_as_addresses_do() -> None:
    assert KERNEL.moved(0xFFFF_FFFF_0000_0000).address("gdt") == 0xFFFF_FFFF_0000_9000
    assert KERNEL.moved(-0x1000).address("start") == 0
    assert Symbols([(0xFFFF_FFFF_8100_0000, "text")]).moved(1 << 63).address("text") == 0x7FFF_FFFF_8100_0000


# KASLR

HANDLERS = st.lists(st.integers(0, 1 << 20), min_size=8, max_size=30, unique=True)


@given(HANDLERS, st.integers(-(1 << 18), 1 << 18).map(lambda pages: pages << 12))
def test_the_offset_is_the_one_that_fits(handlers: list[int], offset: int) -> None:
    """Moved by `offset`, a few gates between symbols: it is that, or there are several and it is none."""
    symbols = Symbols((place + (1 << 40), f"handler{place}") for place in handlers)
    gates = [place + (1 << 40) + offset for place in handlers]
    lost = len(gates) // 5
    gates[:lost] = [gate + (1 << 21) + 1 for gate in gates[:lost]]
    assert symbols.offset_for(gates) in (offset, None)
    low = {place & 0xFFF for place in handlers}
    if len(low) == len(handlers) and not {gate & 0xFFF for gate in gates[:lost]} & low:
        assert symbols.offset_for(gates) == offset


def test_an_offset_that_is_a_guess_is_none() -> None:
    symbols = Symbols((0x1000 * page + 8 * place, "same") for page in range(8) for place in range(8))
    gates = [0x10_0000 + 8 * place for place in range(8)]
    assert symbols.offset_for(gates) is None, "every page fits"
    assert symbols.offset_for([0x8, 0x10, 0x18]) is None, "three gates tell nothing"
    assert Symbols((8 * n, "other") for n in range(4)).offset_for([4, 12, 20, 28]) is None, "none fits"
    half = Symbols((8 * place, "half") for place in range(4))
    assert half.offset_for(gates) is None, "half of the gates would be nowhere"


# Where they come from


def test_system_map() -> None:
    text = b"ffffffff81000000 T _text\n0000000000000000 A fixed\nffffffffc0000000 t mod_fn\t[module]\nnonsense\n"
    symbols = parse_map(text, "map")
    assert symbols.pairs == [(0, "fixed"), (0xFFFFFFFF81000000, "_text"), (0xFFFFFFFFC0000000, "mod_fn")]
    with pytest.raises(ImageError, match="map: no symbols"):
        parse_map(b"nothing of the kind\n", "map")


@given(
    st.lists(st.tuples(st.integers(0, 40), st.text("ab\x1b\xe4\0", min_size=1, max_size=3)), min_size=1, max_size=60)
)
def test_a_map_in_any_order_read_piece_by_piece(pairs: list[tuple[int, str]]) -> None:
    """As one read at once and sorted, wherever the pieces end."""
    text = "".join(f"{address:016x} t {name}\t[module]\n" for address, name in pairs).encode("latin-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 50)
        found = parse_map(text, "map")
    shown = [(address, printable(name.replace("\xe4", "\ufffd"))) for address, name in pairs]
    assert found.pairs == sorted(shown) == Symbols(shown).pairs
    assert all(found.name(address) == min(n for a, n in shown if a == address) for address, _ in shown)


@given(st.lists(st.tuples(st.integers(0, 9) | st.integers((1 << 64) - 9, (1 << 64) - 1), st.text("ab\0", max_size=4))))
def test_symbols_are_a_table_of_addresses_and_names(pairs: list[tuple[int, str]]) -> None:
    """Whatever is in a name, and however far they are moved."""
    for offset in (0, 5, -5):
        table = Symbols(pairs).moved(offset)
        moved = sorted(((address + offset) % (1 << 64), name) for address, name in pairs)
        assert (table.pairs, len(table)) == (moved, len(pairs))
        for name in {name for _, name in pairs}:
            places = {address for address, other in moved if other == name}
            if len(places) == 1:
                assert table.address(name) == places.pop()
            else:
                with pytest.raises(NotThere, match="ambiguous"):
                    table.address(name)
        for where in (0, 3, 1 << 63, (1 << 64) - 1):
            below = [address for address, _ in moved if 0 <= where - address <= 0x10000]
            first = min([name for address, name in moved if address == max(below)]) if below else None
            more = f"+{where - max(below):#x}" if below and where != max(below) else ""
            assert table.name(where) == (None if first is None else first + more)


def test_elf_symbols(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(specimens.kernel())
    symbols = read_symbols(str(tmp_path / "kernel"))
    assert {name for _, name in symbols.pairs} == {"gdt", "idt_table", "cpu_tss"}
    assert symbols.address("idt_table") == 0xFFFF_FFFF_8000_0000 + specimens.IDT


def test_names_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    """Escapes stand for what is not printable, whichever file the names come from."""
    (tmp_path / "core").write_bytes(specimens.core())
    (tmp_path / "map").write_bytes(specimens.SYSTEM_MAP.replace(b"divide_error", b"a\x1b[31mred\x07"))
    assert "a\\x1b[31mred\\x07" in output("dump", tmp_path / "core", "--symbols", tmp_path / "map")
    (tmp_path / "kernel").write_bytes(specimens.kernel().replace(b"cpu_tss\0", b"c\x1b]\xe2\x80\xaes\0"))
    names = {name for _, name in read_symbols(str(tmp_path / "kernel")).pairs}
    assert names == {"gdt", "idt_table", "c\\x1b]\\u202es"}


FOREIGN = "no offset of these symbols fits the gates: they name no handler; are they from another kernel?"
MOVED = FOREIGN.replace("no offset of these symbols fits", "these symbols moved by 0x10000000000 do not fit")


@pytest.mark.parametrize(
    ("image", "symbols", "offset", "remarks"),
    [
        ("xen.core", "linux.map", None, [FOREIGN]),
        ("linux32.core", "linux.map", None, [FOREIGN]),
        ("cloud.core", "linux.map", None, [FOREIGN]),  # alike, but for the NMI's entry
        ("xen.core", "xen.map", None, []),
        ("xen.core", "xen.map", 1 << 40, [MOVED]),
    ],
)
def test_symbols_of_another_kernel_are_remarked(
    image: str, symbols: str, offset: int | None, remarks: list[str]
) -> None:
    options = OpenOptions(symbols=str(IMAGES / symbols), kaslr_offset=offset)
    assert list(open_image(str(IMAGES / image), options).remarks) == remarks


def test_one_handler_with_a_name_is_enough(tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(specimens.core())
    (tmp_path / "map").write_bytes(specimens.SYSTEM_MAP.splitlines(keepends=True)[0])
    assert open_image(str(tmp_path / "core"), OpenOptions(symbols=str(tmp_path / "map"))).remarks == ()


def test_an_elf_file_without_symbols() -> None:
    with pytest.raises(ImageError, match="core: this ELF file has no symbols"):
        read_symbols(str(IMAGES / "xen.core"))


def test_symbols_name_tables_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(specimens.core())
    (tmp_path / "map").write_bytes(specimens.SYSTEM_MAP)
    image = open_image(str(tmp_path / "core"), OpenOptions(symbols=str(tmp_path / "map"), gdt="gdt,0x17"))
    (machine,) = image.machines
    assert machine.registers.gdtr is not None
    assert (machine.registers.gdtr.base, machine.registers.gdtr.limit) == (BASE, 0x17)


# Rust's names

RUST = """
mod memory { pub trait Zeroed { fn zeroed(&self) -> u32; } }
struct Page<const N: usize>;
impl<const N: usize> memory::Zeroed for Page<N> {
    #[inline(never)] fn zeroed(&self) -> u32 { [1u8].iter().map(|_| last::<&'static [(u8, char)]>(N)).sum() }
}
#[inline(never)] fn last<T>(n: usize) -> u32 { if n > 1 { panic!() } 1 }
fn main() { std::process::exit(memory::Zeroed::zeroed(&Page::<4096>) as i32) }
"""
LEGACY = "_ZN6kernel10interrupts7handler17h0123456789abcdefE"
V0 = "_RNvMs7_NtCs4JJAIOwCae5_6kernel3gdtNtB5_5Table4load"


@pytest.mark.needs("rustc", "nm")
@pytest.mark.parametrize("mangling", ["legacy", "v0"])
def test_the_names_that_rust_gives_in_a_backtrace(mangling: str, tmp_path: Path) -> None:
    (tmp_path / "kernel.rs").write_text(RUST)
    style = ["-C", f"symbol-mangling-version={mangling}", "-Z", "unstable-options"]
    build = ["rustc", "--edition=2021", *style, "-o", "kernel", "kernel.rs"]
    subprocess.run(build, cwd=tmp_path, check=True, env={**os.environ, "RUSTC_BOOTSTRAP": "1"})
    run = subprocess.run([tmp_path / "kernel"], env={"RUST_BACKTRACE": "1"}, capture_output=True, text=True)
    expected = {name for name in re.findall(r"^ +\d+: (.*)", run.stderr, re.M) if "kernel" in name}
    assert len(expected) >= 4 and any("4096" in name or "as kernel::memory::Zeroed" in name for name in expected)
    symbols = read_symbols(str(tmp_path / "kernel"))
    mangled = dict(symbols.pairs)
    assert expected <= {symbols.name(at) for at in mangled}
    for at, name in mangled.items():
        shown = symbols.name(at)
        if shown in expected and shown is not None:
            assert shown != name and symbols.address(name) == symbols.address(shown) == at
            assert address(f"{shown}+0x10", symbols) == at + 16 and symbols.size(shown) == symbols.size(name) > 0


def test_rust_names_in_any_output() -> None:
    image, table = IMAGES / "rust.core", IMAGES / "rust.map"
    (mangled,) = re.findall(r"_R\w*double_fault_handler", table.read_text())
    for command in ("dump", "check", "trace"):
        more = ["--vector", "8"] if command == "trace" else []
        said = output(command, image, "--symbols", table, *more)
        assert "kernel::interrupts::double_fault_handler" in said and mangled not in said
    gate = output("decode", "0x42", "--as", "error-code", "--in", image, "--symbols", table)
    assert "kernel::interrupts::double_fault_handler" in gate
    for idt in ("kernel::interrupts::IDT", mangled.replace("20double_fault_handler", "3IDT")):
        assert "IDT  base 0x105020" in output("dump", image, "--symbols", table, "--idt", f"{idt},0xfff")


def test_names_that_are_not_rusts_stay() -> None:
    names = ("_R", "_RNvC", "_Z3fooi", "_ZN3Foo3barEv", "_ZN", "asm_df", "_RNvCsepu6uFCwWNi_6kernel", "R", "")
    assert [readable(name) for name in names] == list(names)
    assert readable(f"{LEGACY}.llvm.123") == "kernel::interrupts::handler"
    bomb = "IC1aTllE" + "".join(f"TB{at}_B{at}_E" for at in "37fnvDLT")  # each is two of the one before
    assert readable(f"_R{bomb[:-8]}E").count("i32") == 510 and readable(f"_R{bomb}E") == f"_R{bomb}E"
    symbols = Symbols([(1, LEGACY), (2, LEGACY.replace("0123", "3210")), (3, V0)])
    assert symbols.address("<kernel::gdt::Table>::load") == symbols.address(V0) == 3
    assert symbols.has("kernel::interrupts::handler") and not symbols.has("interrupts::handler")
    assert not any(map(symbols.has, ("::", "kernel::", "{}::<>", "kernel::interrupts::{closure#0}", "a\0::b")))
    with pytest.raises(NotThere, match="ambiguous: 0x1, 0x2"):
        symbols.address("kernel::interrupts::handler")


def test_without_the_package_names_stay_as_they_are() -> None:
    script = "import sys; sys.modules['pyderust'] = None; from x86tables.machine.symbols import Symbols; "
    script += f"print(Symbols([(1, '{V0}')]).name(1))"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert said == f"{V0}\n"
