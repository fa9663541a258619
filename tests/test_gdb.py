"""Inside gdb, connected to QEMU: the example kernel in a function of its, and in its double fault handler."""

import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_kernel import kernel  # noqa: F401 - a fixture

import x86tables.gdb

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.needs("make", "gcc", "as", "ld", "qemu-system-x86_64", "gdb")


def test_where_it_is() -> None:
    """`python -m x86tables.gdb` names the file that gdb sources."""
    run = subprocess.run([sys.executable, "-m", "x86tables.gdb"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert Path(run.stdout.strip()).samefile(x86tables.gdb.__file__)
    assert "install" in runpy.run_path(run.stdout.strip()), "and it says so only when it is run"


@pytest.fixture
def started(kernel: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:  # noqa: F811
    """The kernel, about to run off its stack, stopped at its first instruction; its ELF file and the stub's socket."""
    elf, stub = kernel / "build/survives/kernel.elf", tmp_path / "gdb"
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-S", "-kernel", elf,
         "-append", "overflow, then wait", "-gdb", f"unix:{stub},server=on,wait=off"],
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not stub.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield elf, stub
    finally:
        process.kill()
        process.wait()


def gdb(*commands: str, **environment: str) -> str:
    """What gdb prints that runs these commands; each is announced by itself."""
    words = [word for command in commands for word in ("-ex", f"echo == {command}\\n", "-ex", command)]
    run = subprocess.run(
        ["gdb", "-nx", "-q", "-batch", "-ex", "set width 200", *words],
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
    )  # fmt: skip
    return run.stdout


def test_commands(started: tuple[Path, Path]) -> None:
    elf, stub = started
    said = gdb(
        f"file {elf}",
        f"target remote {stub}",
        f"source {x86tables.gdb.__file__}",
        "hbreak overflow",
        "continue",
        "x86 check",
        "hbreak interrupt",
        "delete 1",
        "continue",
        "x86 check --cpu 0",
        "x86 idt",
        "x86 gdt",
        "x86 tss",
        "x86 trace 8",
        "x86 error-code 0x43",
        "x86 explain IDT004",
        "x86",
        "x86 nonsense",
    )
    parts = dict(part.partition("\n")[::2] for part in said.split("== ")[1:])
    # in the function that runs off its stack, before it does: symbols and lines are gdb's
    assert "QEMU: gdb, 1 CPU" in parts["x86 check"] and "survives if a guard page is hit" in parts["x86 check"]
    assert "the stack in use is guarded" in parts["x86 check"] and "runs on IST1 (asm_df)" in parts["x86 check"]
    # in the handler: RSP is within the stack that gate 8 names, and so it is still
    assert "survives if a guard page is hit" in parts["x86 check --cpu 0"]
    idt = parts["x86 idt"]
    assert re.search(r"^    8 #DF     interrupt  0x8:0x\w+ +IST1 0    asm_df$", idt, re.M)
    assert re.search(r"ring 0, at 0x8:0x\w+ <interrupt at kernel.c:\d+>$", idt, re.M)
    assert "64-bit code, ring 0" in parts["x86 gdt"] and "IDT" not in parts["x86 gdt"]
    assert "IST1  0x" in parts["x86 tss"]
    assert "#DF handler on IST1" in parts["x86 trace 8"]
    assert "interrupt gate -> 0x8:" in parts["x86 error-code 0x43"] and "<asm_df>" in parts["x86 error-code 0x43"]
    assert "IDT004" in parts["x86 explain IDT004"]
    assert "x86 trace VECTOR" in parts["x86"]
    assert "x86tables: unknown command 'nonsense'" in said and "x86 nonsense failed" in said


def test_without_a_machine() -> None:
    said = gdb(f"source {x86tables.gdb.__file__}", "x86 check")
    assert "x86tables: QEMU: gdb's `monitor info registers -a` fails: " in said and "is it connected to QEMU?" in said
    assert "Traceback" not in said


def test_only_inside_gdb() -> None:
    from cli import refused

    assert refused("check", "gdb:") == "QEMU: only inside gdb; elsewhere gdb:HOST:PORT"
