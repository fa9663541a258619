"""Functions that keep data below RSP, in what compilers made with a red zone and without."""

import subprocess
from pathlib import Path

import pytest

from x86tables import budgets
from x86tables.readers import read_symbols

pytestmark = pytest.mark.needs("ld", "iced_x86")

RUST = """
#![no_std]
#[panic_handler] fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[no_mangle] pub extern "C" fn same(a: u64) -> u64 { a }
#[no_mangle] pub extern "C" fn leaf(a: &mut [u64; 4]) -> u64 {
    let mut kept = [0u64; 4];
    for n in 0..4 { unsafe { core::ptr::write_volatile(&mut kept[n], a[n]); } }
    unsafe { core::ptr::read_volatile(&kept[3]) ^ core::ptr::read_volatile(&kept[1]) }
}
"""
BARRIER = """
        .globl leaf, jump, data
        .type leaf, @function
leaf:   lock addl $0, -4(%rsp)
        movl $0x80245489, %eax  # as the bytes of a store in the middle of another instruction
        mov -8(%rsp), %rax
        lea -8(%rsp), %rax
        ret
        .size leaf, . - leaf
data:   .byte 0x89, 0x44, 0x24, 0xf8
        .section .note.GNU-stack, "", @progbits
"""


def below(folder: Path) -> tuple[str, ...]:
    """What is found in k.o, linked."""
    link = ["ld", "-nostdlib", "--unresolved-symbols=ignore-all", "-e", "leaf", "-o", "k", "k.o"]
    subprocess.run(link, cwd=folder, check=True, capture_output=True)
    return read_symbols(str(folder / "k")).below_rsp()


@pytest.mark.needs("rustc")
@pytest.mark.parametrize("level", ["0", "2", "s"])
def test_rust(tmp_path: Path, level: str) -> None:
    (tmp_path / "k.rs").write_text(RUST)
    build = ["rustc", "--edition=2021", "--crate-type=lib", "--emit=obj=k.o", "-Cpanic=abort", f"-Copt-level={level}"]
    build += ["-g", "k.rs"]
    subprocess.run([*build, "-Cno-redzone=no"], cwd=tmp_path, check=True)
    assert below(tmp_path)
    assert read_symbols(str(tmp_path / "k")).compiled(bool) is None, "rustc has recorded no options"
    subprocess.run([*build, "-Cno-redzone=yes"], cwd=tmp_path, check=True)
    assert below(tmp_path) == ()


@pytest.mark.needs("gcc")
def test_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "k.c").write_text("long leaf(long a) { volatile long kept = a; return kept; }\n")
    for option, found in (("-mno-red-zone", ()), ("-mred-zone", ("leaf",))):
        subprocess.run(["gcc", "-O2", "-ffreestanding", option, "-c", "k.c"], cwd=tmp_path, check=True)
        assert below(tmp_path) == found
    monkeypatch.setattr(budgets, "DECODED_CODE", 4)
    assert below(tmp_path) == ()


@pytest.mark.needs("as")
def test_what_looks_like_it(tmp_path: Path) -> None:
    """A barrier, a load, an address, bytes inside of another instruction, data among the code."""
    (tmp_path / "k.s").write_text(BARRIER)
    subprocess.run(["as", "-o", "k.o", "k.s"], cwd=tmp_path, check=True)
    assert below(tmp_path) == ()
