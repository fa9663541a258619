"""Damaged files for every reader: `python tests/fuzz.py SECONDS [SEED]` runs long, tests/test_fuzz_readers.py briefly.

A case takes a good file, changes it in a few places (bits, words that lie about sizes, pieces cut out or doubled, the
end cut off), and runs a command on it. The command may show what is left, or refuse in one sentence; nothing else. The
long run is guided by coverage: a damaged file that leads to a new step from line to line is damaged further.
"""

import gzip
import lzma
import os
import random
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import specimens
from cli import call

import x86tables

LIES = [
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 4,
    b"\0\0\0\0\0\0\0\x80",
    b"\xff" * 7 + b"\x7f",
    b"\0\0\0\x80",
    b"\1" + b"\0" * 7,
]
os.environ["X86TABLES_DEBUG"] = "1"
PACKAGE = str(Path(x86tables.__file__).parent)
SECONDS = 5.0  # of the processor, for one file of these sizes

HOSTILE = Path(__file__).parent / "hostile"
ELF_FILES = runpy.run_path(str(HOSTILE / "elf_files.py"))["FILES"]

# A good file, and the command that reads it ({} is the file, {core} an undamaged core beside it, {hostile} a folder)
SPECIMENS: dict[str, tuple[Callable[[], bytes], str]] = {
    "elfcore": (specimens.core, "dump {}"),
    "elfcore, judged": (specimens.core, "check {} --scenario all"),
    "elf": (specimens.kernel, "dump {}"),
    "raw": (specimens.memory, "dump {} --base 0x100000 --gdt 0x100000,0x37 --idt 0x100100,0x7f --tss 0x100f00"),
    "table": (lambda: specimens.tables()[specimens.IDT : specimens.IDT + 128], "dump {}"),
    "registers": (specimens.MONITOR.encode, "dump {core} --registers {}"),
    "symbols": (lambda: specimens.SYSTEM_MAP, "dump {core} --symbols {}"),
    "symbols of an ELF": (specimens.kernel, "dump {core} --symbols {}"),
    "source lines": (ELF_FILES["sound-lines.elf"], "dump {hostile}/idt.bin --base 0 --idt 0,0x7f --symbols {}"),
    "link": (ELF_FILES["kernel.elf"], "link {} {hostile}/kernel.toml -o {}.out"),
    "gzip": (lambda: gzip.compress(specimens.core(), 1), "dump {}"),
    "xz": (lambda: lzma.compress(specimens.core(), preset=0), "dump {}"),
}


def damaged(good: bytes, rng: random.Random) -> bytes:
    """`good` with one to four changes, most of them where headers are."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(min(len(data), rng.choice((64, 256, 1024, len(data)))))
        change = rng.randrange(6)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at] = rng.randrange(256)
        elif change == 2:
            lie = rng.choice(LIES)
            data[at : at + len(lie)] = lie[: len(data) - at]
        elif change == 3:
            del data[at : at + rng.randint(1, 64)]
        elif change == 4:
            data[at:at] = data[at : at + rng.randint(1, 64)]
        else:
            del data[rng.randrange(len(data)) :]
    return bytes(data)


class Fuzz:
    """Cases by seed and number, each the same whenever it is run again."""

    limit = SECONDS

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        self.good = {name: make() for name, (make, _) in SPECIMENS.items()}
        self.core = folder / "good.core"
        self.core.write_bytes(specimens.core())

    def case(self, number: int) -> str:
        """Run one case; what was wrong with how it went, "" when nothing was."""
        name = list(SPECIMENS)[number % len(SPECIMENS)]
        return self.run(name, damaged(self.good[name], random.Random(f"{self.seed} {number}")))

    def run(self, name: str, data: bytes) -> str:
        """Run the command of a specimen on these bytes; what was wrong with how it went."""
        path = self.folder / "damaged"
        path.write_bytes(data)
        words = [word.format(path, core=self.core, hostile=HOSTILE) for word in SPECIMENS[name][1].split()]
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
            told = told and (not out or "no table can be read" in err or name == "link")
            return "" if told else f"{name}: exit 2 with {out[:80]!r} and {err!r}"
        return "" if status in (0, 1) and out and not err else f"{name}: exit {status} with {err!r}"


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
        data = damaged(rng.choice(self.starts[name]), rng)
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
    variants = sum(map(len, fuzz.starts.values()))
    print(f"{number} cases, {variants} of them went a new way, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
