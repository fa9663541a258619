"""Make the small images that the tests read from captures of whole machines.

    python tests/images/shrink.py [DIR]

DIR holds what capture.py wrote, one system or several; without it only the texts are made again. Beside this
script go the facts as they are, and for each NAME

    NAME.core            what `x86tables extract` keeps of NAME.core
    NAME-tables.core.xz  every page table that a CPU's CR3 leads to, and the registers (systems with paging)
    NAME.txt             what `x86tables dump` prints for the small image: read it before you commit it
"""

import argparse
import lzma
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent.absolute()
ROOT = HERE.parent.parent
FACTS = (".json", ".map", ".xz", ".bin")


def shrink(source: Path, name: str) -> None:
    """Put the small images of one captured system, and its facts, beside this script."""
    core = source / f"{name}.core"
    x86tables("extract", core, "-o", HERE / core.name)
    for file in source.glob(f"{name}[.-]*"):
        if file.suffix in FACTS:
            shutil.copy(file, HERE)
    if tables := page_tables(core):
        (HERE / f"{name}-tables.core.xz").write_bytes(lzma.compress(tables, preset=9))


def arguments(name: str) -> list[str]:
    """The command line whose output NAME.txt holds; it is run in the root of the project."""
    symbols = ["--symbols", f"tests/images/{name}.map"] if (HERE / f"{name}.map").exists() else []
    return ["dump", f"tests/images/{name}.core", *symbols]


def x86tables(*argv: str | Path) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "x86tables", *argv], cwd=ROOT, check=True, text=True, capture_output=True
    )
    return run.stdout


def page_tables(core: Path) -> bytes:
    """A core with every page table that a CPU's CR3 leads to; empty when paging is off."""
    sys.path.insert(0, str(ROOT))  # works in a checkout that is not installed
    from x86tables.machine.image import OpenOptions
    from x86tables.machine.mappings import mappings
    from x86tables.machine.memory import Memory, Recording
    from x86tables.readers import elfcore, open_image

    recordings: list[Recording] = []

    def record(memory: Memory) -> Memory:
        recordings.append(Recording(memory))
        return recordings[-1]

    image = open_image(str(core), OpenOptions(memory=record))
    mapped = sum(len(list(mappings(machine.space))) for machine in image.machines)
    with tempfile.NamedTemporaryFile() as file:
        elfcore.write(file.name, recordings[0], recordings[0].pages, image.notes)
        return Path(file.name).read_bytes() if mapped else b""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("captures", type=Path, nargs="?", metavar="DIR")
    captures: Path | None = parser.parse_args().captures
    for facts in sorted(captures.absolute().rglob("*.json") if captures else ()):
        if facts.with_suffix(".core").exists():
            print(facts.stem)
            shrink(facts.parent, facts.stem)
    for core in HERE.glob("*.core"):
        core.with_suffix(".txt").write_text(x86tables(*arguments(core.stem)))


if __name__ == "__main__":
    main()
