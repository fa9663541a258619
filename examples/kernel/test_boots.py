"""What this kernel's continuous integration asks of it; copy it into your own, and change the names on top.

Before a boot, `check` judges the tables in the linked kernel; then QEMU boots it, and the log of its events is judged:
a kernel that prints what it should and then shuts down does not pass. Needs x86tables[elf], pytest and QEMU.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from x86tables.prove import qemu as guest

BUILD = Path(__file__).parent / "build"
SECONDS = 60  # for one boot; it takes less than one


def boot(fate: str, command: str) -> guest.Ending:
    """Boot the kernel that is to meet this fate."""
    kernel = str(BUILD / fate / "kernel.elf")
    return guest.watch([*guest.kernel(kernel, append=command), "-display", "none"], SECONDS)


def check(fate: str) -> dict[str, object]:
    """What `x86tables check` says of the declared tables, at the addresses that the linker chose."""
    folder = BUILD / fate
    command = ["check", f"{folder}/kernel.toml", "--symbols", f"{folder}/kernel.elf", "--format", "json"]
    run = subprocess.run([sys.executable, "-m", "x86tables", *command], capture_output=True, text=True)
    cpu: dict[str, object] = json.loads(run.stdout)["cpus"][0]
    assert run.returncode == (0 if cpu["verdict"] == "survives" else 1), run.stderr
    return cpu


def test_a_breakpoint_returns() -> None:
    ending = boot("survives", "breakpoint")
    assert b"breakpoint before" in ending.output
    assert b"execution goes on" in ending.output
    assert ending.status == 2 * 0x10 + 1


def test_a_wild_pointer_reaches_the_double_fault_handler() -> None:
    """There is no gate for page faults: that the #PF cannot be delivered makes it a double fault."""
    ending = boot("survives", "write")
    assert b"double fault on IST1" in ending.output
    assert b"CR2 0xdeadbeef\n" in ending.output
    assert ending.verdict == "survives"
    assert ending.status == 2 * 8 + 1


def test_a_stack_overflow_is_survived() -> None:
    said = check("survives")
    assert said["verdict"] == "survives"
    assert "'stack': 'IST1'" in str(said["handled_by"])
    ending = boot("survives", "overflow")
    assert b"double fault on IST1\n  vector 0x8, error code 0x0, CR2 0x" in ending.output
    assert b"(guard page)\n  RIP 0x" in ending.output
    assert ending.verdict == "survives"
    assert ending.status == 2 * 8 + 1


def test_without_the_stack_it_is_a_triple_fault_as_check_says() -> None:
    said = check("triple-fault")
    assert said["verdict"] == "triple-fault"
    assert "IDT004" in str(said["findings"])
    ending = boot("triple-fault", "overflow")
    assert ending.verdict == "triple-fault"
    assert b"double fault" not in ending.output


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
