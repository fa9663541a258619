"""Make tables from a configuration: bytes, sources, a linker script.

The tables are checked before they are written: a configuration that does not survive a stack overflow, or in which a
rule finds an error, is refused with status 1, and nothing is written. Where addresses are needed and the configuration
has none, they come from the linked kernel: --symbols KERNEL.elf.
"""

from __future__ import annotations

import os

from ..errors import NotThere, UsageError
from ..outputs import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..api import Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `build`."""
    from ..emit import names

    parser.add_argument("config", metavar="CONFIG", help="a TOML file; `x86tables schema` says what is in it")
    parser.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="directory for the files; created if missing"
    )
    parser.add_argument("--emit", metavar="WHAT,...", required=True, help=f"one or more of {', '.join(names())}")
    parser.add_argument("--symbols", metavar="FILE", help="the linked kernel (its segments count too), or a System.map")
    parser.add_argument("--no-check", action="store_true", help="write even if the checks refuse")


def run(args: argparse.Namespace) -> int:
    """Check, then write; 1 when the checks refuse it."""
    from ..api import open_config, refusals
    from ..emit import DEFINING, defines
    from ..render import writing
    from ..render.lines import output, wrap

    image = open_config(args.config, args.symbols)
    files = _files(image, args.emit.split(","))
    lines: list[str] = []
    if not args.no_check:
        assessments = image.check()
        lines += writing.checked(image.snapshot, assessments)
        if refused := "; ".join(refusals(image, assessments)):
            output([*lines, f"nothing was written: {refused}; --no-check writes it anyway"])
            return 1
    write_all(args.output, files)
    lines += (f"{os.path.join(args.output, name)}: {len(data):,} bytes" for name, data in files.items())
    if image.tables is not None and not files.keys().isdisjoint(DEFINING):
        lines += wrap(f"  {defines(image.tables)}", "  ")
    output(lines)
    return 0


def _files(image: Image, languages: list[str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for language in languages:
        try:
            made = image.emit(language)
        except NotThere as error:
            raise UsageError(f"--emit {language}: {error}") from None
        for name, contents in made.items():
            if files.setdefault(name, contents) != contents:
                raise UsageError(f"--emit {language}: another {name} is written already: leave out one of the two")
    return files
