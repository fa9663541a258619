"""examples/kernel: its four boots, and its memory while it stands in the double fault handler."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import call, dumped

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.needs("make", "gcc", "as", "ld", "qemu-system-x86_64")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, built."""
    folder = tmp_path_factory.mktemp("kernel") / "kernel"
    shutil.copytree(ROOT / "examples/kernel", folder, ignore=shutil.ignore_patterns("build", "__pycache__"))
    make(folder)
    return folder


def make(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["make", f"PYTHON={sys.executable}", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_four_boots(kernel: Path) -> None:
    assert "4 passed" in make(kernel, "test")


class Monitor:
    """QEMU's monitor, on a socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rw")
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> None:
        """Run one command and wait for what it returns."""
        self.lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.lines.flush()
        for line in self.lines:
            answer = json.loads(line)
            assert "error" not in answer, answer
            if "return" in answer:
                return


@pytest.fixture(scope="module")
def dump(kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kernel's memory while it stands in the #DF handler."""
    folder = tmp_path_factory.mktemp("dump")
    console = folder / "console"
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-accel", "tcg", "-no-reboot", "-m", "16", "-nodefaults", "-display", "none",
         "-serial", f"file:{console}", "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off",
         "-kernel", kernel / "build/survives/kernel.elf", "-append", "overflow, then wait"],
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (console.exists() and b"waiting" in console.read_bytes()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        monitor = Monitor(folder / "qmp")
        monitor.command("dump-guest-memory", paging=False, protocol=f"file:{folder / 'kernel.core'}")
        monitor.socket.close()
        monitor.lines.close()
        yield folder / "kernel.core"
    finally:
        process.kill()
        process.wait()


def test_dump_in_the_double_fault_handler(kernel: Path, dump: Path) -> None:
    elf = kernel / "build/survives/kernel.elf"
    told = dumped(dump, "--symbols", elf)["cpus"][0]
    assert told["mode"] == "long64"
    gates = {gate["vector"]: gate for gate in told["idt"]["gates"] if gate["p"]}
    assert {vector: gate["ist"] for vector, gate in gates.items()} == {3: 0, 8: 1}
    # the stack that the CPU stands on is the one that gate 8 names
    top = int(told["tss"]["ist"][0], 16)
    assert top - 20 * 1024 < int(told["registers"]["rsp"], 16) < top
    assert int(told["registers"]["cr2"], 16) & -0x1000 == int(told["tss"]["ist"][0], 16) - 0x1000 * (5 + 1 + 4 + 1)


def test_check_in_the_double_fault_handler(kernel: Path, dump: Path) -> None:
    status, out, _ = call("check", dump, "--symbols", kernel / "build/survives/kernel.elf", "--format", "json")
    cpu = json.loads(out)["cpus"][0]
    assert (status, cpu["verdict"], cpu["stack"]["verdict"]) == (0, "survives", "guarded")
    # what the declaration takes for granted of the boot code is so
    assert not [found for found in cpu["findings"] if found["severity"] == "error"]
