"""Make the sources of the kernel's tables: python build.py CONFIG DIR [WITHOUT]

What CONFIG declares becomes tables, entry stubs and constants in DIR, for gcc and ld. WITHOUT is a piece of CONFIG to
be left out: the kernel's stack overflow shall be seen to kill it without its IST stack.
"""

import sys
from pathlib import Path

from x86tables import config
from x86tables.emit import emit


def main(source: str, folder: str, without: str = "") -> None:
    """Write a copy of the declaration, and what is made of it."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    text = Path(source).read_text()
    assert without in text, f"{source} has no {without!r}"
    (out / "kernel.toml").write_text(text.replace(without, ""))
    tables = config.load(str(out / "kernel.toml"))
    for language in ("gas", "ld", "stubs"):
        for name, contents in emit(language, tables, config.lookup(tables)).items():
            (out / name).write_bytes(contents)


main(*sys.argv[1:])
