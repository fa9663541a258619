"""Damaged files for every reader: `python tests/fuzz.py SECONDS [SEED]` runs long, tests/test_fuzz_readers.py briefly.

A case takes a good file, damages it in a few places (tests/damage.py), and runs a command on it. The command may show
what is left, or refuse in one sentence; nothing else, and what it writes is sound. The long run is guided by coverage:
a damaged file that leads to a new step from line to line is damaged further.
"""

import gzip
import lzma
import os
import random
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import recast
import specimens
from cli import IMAGES, answers, call
from damage import damaged, damaged_text

import x86tables
from x86tables.machine.memory import Memory
from x86tables.machine.registers import Registers
from x86tables.readers import elfcore

os.environ["X86TABLES_DEBUG"] = "1"
PACKAGE = str(Path(x86tables.__file__).parent)
SECONDS = 5.0  # of the processor, for one file of these sizes

HOSTILE = Path(__file__).parent / "hostile"
LOGS = Path(__file__).parent / "logs"
EXAMPLES = Path(__file__).parent.parent / "examples"
ELF_FILES = runpy.run_path(str(HOSTILE / "elf_files.py"))["FILES"]


def unpacked(name: str, folder: Path = LOGS) -> bytes:
    """A packed file of tests/logs, or of another folder."""
    return lzma.decompress((folder / f"{name}.xz").read_bytes())


def small() -> tuple[Memory, list[Registers]]:
    """The memory and registers of the other specimens."""
    return Memory([(specimens.FRAME, len(specimens.memory()), specimens.memory(), 0)]), [specimens.registers()]


def streamed() -> bytes:
    """A migration stream of QEMU's."""
    memory, registers = small()
    return recast.migration(memory, registers, specimens.END)


LIBVIRT = struct.pack("<16sIIIII56x", b"LibvirtQemudSave", 2, 0, 1, 1, 0)


def dumped(kind: int) -> bytes:
    """A crash dump of Windows."""
    memory, (registers,) = small()
    return recast.crashdump(memory, registers, kind)


BASELINE = b"""{"accepted": [{"rule": "STK001", "where": "tss.ist1", "cpu": 0}, {"rule": "IDT001", "where": "idt[8]"}],
 "cpus": [{"cpu": 0, "findings": [{"rule": "IDT004", "where": "idt[8].ist"}]}]}"""
TEXTS = (
    "registers",
    "registers as JSON",
    "symbols",
    "log",
    "log with an image",
    "baseline",
    "built",
)  # and configurations

# A good file, and the command that reads it ({} is the file, {core} an undamaged core beside it, {hostile} a folder)
SPECIMENS: dict[str, tuple[Callable[[], bytes], str]] = {
    "elfcore": (specimens.core, "dump {}"),
    "elfcore, judged": (specimens.core, "check {} --scenario all"),
    "elfcore, as a page": (specimens.core, "check {} --format html"),
    "elfcore, its tables as a page": (specimens.core, "dump {} --format html"),
    "elfcore, traced as a picture": (specimens.core, "trace {} --vector 14 --format svg"),
    "elfcore, traced": (specimens.core, "trace {} --vector 14 --error-code 2 --handler-stack 65536 --steps"),
    "elfcore of several CPUs": (lambda: specimens.core(said=specimens.notes(5)), "check {}"),
    "elfcore of 32 bits": ((IMAGES / "grub.core").read_bytes, "check {}"),
    "elfcore of PAE": ((IMAGES / "linux32.core").read_bytes, "dump {}"),
    "elfcore of firmware": ((IMAGES / "ovmf.core").read_bytes, "check {} --format sarif"),
    "kdump": (lambda: recast.kdump(small()[0], elfcore.state_note(small()[1][0]), "snappy"), "dump {}"),
    "kdump, flattened": (lambda: recast.flattened(recast.kdump(small()[0], b"", "lzo"), 512), "check {}"),
    "AVML": (lambda: recast.lime(small()[0], b"LMVA", 2), "dump {}"),
    "migration stream": (streamed, "dump {}"),
    "state saved by libvirt": (lambda: LIBVIRT + gzip.compress(streamed()), "check {}"),
    "vmcore": (lambda: unpacked("crashed-linux.vmcore", IMAGES), "check {}"),
    "VirtualBox's core": (lambda: recast.virtualbox(*small()), "dump {}"),
    "VMware's state file": (lambda: recast.vmware(*small(), inside=True)[0], "check {} --gdt 0x100000"),
    "complete crash dump": (lambda: dumped(1), "dump {} --registers {hostile}/regs.json"),
    "crash dump with a bitmap": (lambda: dumped(5), "dump {} --registers {hostile}/regs.json"),
    "crash dump with ranges": (lambda: dumped(8), "dump {} --registers {hostile}/regs.json"),
    "registers as JSON": (lambda: (HOSTILE / "regs.json").read_bytes(), "dump {core} --registers {}"),
    "extracted": (specimens.core, "extract {} -o {}.out"),
    "error code": (specimens.core, "decode 0x1b --as error-code --in {}"),
    "elf": (specimens.kernel, "dump {}"),
    "raw": (specimens.memory, "dump {} --base 0x100000 --gdt 0x100000,0x37 --idt 0x100100,0x7f --tss 0x100f00"),
    "raw, searched": (specimens.whole_memory, "scan {}"),
    "raw, searched and judged": (specimens.whole_memory, "check {}"),
    "table": (lambda: specimens.tables()[specimens.IDT : specimens.IDT + 128], "dump {}"),
    "registers": (specimens.MONITOR.encode, "dump {core} --registers {}"),
    "symbols": (lambda: specimens.SYSTEM_MAP, "dump {core} --symbols {}"),
    "symbols of an ELF": (specimens.kernel, "dump {core} --symbols {}"),
    "source lines": (ELF_FILES["sound-lines.elf"], "dump {hostile}/idt.bin --base 0 --idt 0,0x7f --symbols {}"),
    "log": (lambda: unpacked("triple.log")[:20_000], "log {}"),
    "log as a page": (lambda: unpacked("triple.log")[:20_000], "log {} --format html"),
    "log with an image": (lambda: unpacked("triple.log"), "log {} --in {triple}"),
    "image of a log": (lambda: unpacked("triple.core"), "log {log} --in {}"),
    "baseline": (lambda: BASELINE, "check {core} --baseline {}"),
    "configuration": ((EXAMPLES / "two_cpus.toml").read_bytes, "check {} --scenario all"),
    "built": (
        (EXAMPLES / "double_fault.toml").read_bytes,
        "build {} -o {}.out --no-check --emit c,gas,nasm,ld,stubs",
    ),
    "configuration of a link": ((HOSTILE / "kernel.toml").read_bytes, "link {hostile}/kernel.elf {} -o {}.out"),
    "link": (ELF_FILES["kernel.elf"], "link {} {hostile}/kernel.toml -o {}.out"),
    "gzip": (lambda: gzip.compress(specimens.core(), 1), "dump {}"),
    "xz": (lambda: lzma.compress(specimens.core(), preset=0), "dump {}"),
}


def same_when_cut(big: Path) -> str:
    """What is shown and judged otherwise of the small image that was cut from this one."""
    return (
        "" if answers(big) == answers(Path(f"{big}.out")) else "the small image is not shown and judged as the big one"
    )


def assembled(config: Path) -> str:
    """Why an assembler refuses what was built of a configuration; "" where there is none."""
    for words in (["as", "-o", "tables.o", "tables.s"], ["nasm", "-f", "elf64", "-o", "tables.o", "tables.asm"]):
        if shutil.which(words[0]):
            done = subprocess.run(words, cwd=f"{config}.out", capture_output=True, text=True, check=False)
            if done.returncode:
                return f"{words[0]} refuses what was built: {done.stderr[:400]}"
    return ""


# What must hold beside, when a command has done its work
LAWS: dict[str, Callable[[Path], str]] = {"extracted": same_when_cut, "built": assembled}


class Fuzz:
    """Cases by seed and number, each the same whenever it is run again."""

    limit = SECONDS

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        self.good = {name: make() for name, (make, _) in SPECIMENS.items()}
        self.beside = {"core": folder / "good.core", "log": folder / "good.log", "triple": folder / "triple.core"}
        self.beside["core"].write_bytes(specimens.core())
        for name, kept in (("log", "triple.log"), ("triple", "triple.core")):
            self.beside[name].write_bytes(unpacked(kept))

    def case(self, number: int) -> str:
        """Run one case; what was wrong with how it went, "" when nothing was."""
        name = list(SPECIMENS)[number % len(SPECIMENS)]
        return self.run(name, self.damaged(name, self.good[name], random.Random(f"{self.seed} {number}")))

    def damaged(self, name: str, good: bytes, rng: random.Random) -> bytes:
        """A good file damaged as its kind is."""
        text = name in TEXTS or name.startswith("configuration")
        return damaged_text(good, rng) if text else damaged(good, rng)

    def run(self, name: str, data: bytes) -> str:
        """Run the command of a specimen on these bytes; what was wrong with how it went."""
        toml = name == "built" or name.startswith("configuration")
        path = self.folder / ("damaged.toml" if toml else "damaged")
        path.write_bytes(data)
        made = Path(f"{path}.out")
        shutil.rmtree(made, ignore_errors=True)
        made.unlink(missing_ok=True)
        words = [word.format(path, hostile=HOSTILE, **self.beside) for word in SPECIMENS[name][1].split()]
        start = time.process_time()
        try:
            status, out, err = call(*words)
        except Exception:
            return f"{name}: {traceback.format_exc()}"
        taken = time.process_time() - start
        if taken > self.limit:
            return f"{name}: {taken:.1f} s"
        if status == 2:
            told = err.startswith("x86tables: ") and err.count("\n") == 1
            told = told and (str(self.folder) in err or str(HOSTILE) in err)
            told = told and (not out or "no table can be read" in err or "link" in name)
            return "" if told else f"{name}: exit 2 with {out[:80]!r} and {err!r}"
        if status not in (0, 1) or not out or err:
            return f"{name}: exit {status} with {err!r}"
        wrong = LAWS[name](path) if status == 0 and name in LAWS else ""
        return wrong and f"{name}: {wrong}"


class Guided(Fuzz):
    """Cases that begin with any file that went a new way before; `failed` is the last file that went wrong."""

    limit = 10 * SECONDS  # each line is noted

    def __init__(self, folder: Path, seed: int = 0) -> None:
        super().__init__(folder, seed)
        self.starts = {name: [data] for name, data in self.good.items()}
        self.steps: set[tuple[CodeType, int, int]] = set()
        self.failed = b""

    def case(self, number: int) -> str:
        rng = random.Random(f"{self.seed} {number}")
        name = list(SPECIMENS)[number % len(SPECIMENS)]
        data = self.damaged(name, rng.choice(self.starts[name]), rng)
        known = len(self.steps)
        sys.settrace(self._enter)
        try:
            wrong = self.run(name, data)
        finally:
            sys.settrace(None)
        if len(self.steps) > known:
            self.starts[name].append(data)
        if wrong:
            self.failed = data
        return wrong

    def _enter(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        """Note the steps from line to line of a function of the package."""
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        last = 0

        def step(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
            nonlocal last
            if event == "line":
                self.steps.add((frame.f_code, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step


def main() -> int:
    """Run until the time is up; 1 when a case went wrong, which is told and its file kept."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        fuzz, number, failed, end = Guided(Path(folder), seed), 0, 0, time.monotonic() + seconds
        while time.monotonic() < end:
            if wrong := fuzz.case(number):
                failed += 1
                kept = Path(tempfile.gettempdir()) / f"x86tables-fuzz-{seed}-{number}"
                kept.write_bytes(fuzz.failed)
                print(f"{kept}: {wrong}")
            number += 1
    variants = sum(map(len, fuzz.starts.values())) - len(fuzz.starts)  # the good files
    print(f"{number} cases, {variants} of them went a new way, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
