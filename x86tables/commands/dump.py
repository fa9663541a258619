"""Show the descriptor tables in an image, decoded.

For each CPU: what it was doing, its GDT, IDT, TSS with the stacks that it names, and LDT. A CPU outside of
64-bit mode is shown in its own terms. Consecutive gates whose handlers differ by a constant stride share one line.
"""

from __future__ import annotations

import sys

from ..errors import ImageError, UsageError
from ._arguments import add_format_arguments, add_image_arguments, chosen, image_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..api import Image
    from ..machine.machine import Machine

TABLES = ("gdt", "idt", "tss", "ldt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `dump`."""
    add_image_arguments(parser)
    parser.add_argument("--table", metavar="TABLES", help=f"only these, comma-separated: {', '.join(TABLES)}")
    parser.add_argument("--all", action="store_true", help="show absent gates too (text)")
    add_format_arguments(parser, "text", "json", "html")


def run(args: argparse.Namespace) -> int:
    """Print the tables; 0 unless nothing can be read."""
    tables = tuple(args.table.split(",")) if args.table is not None else TABLES
    for name in tables:
        if name not in TABLES:
            raise UsageError(f"--table {name}: one of {', '.join(TABLES)}")
    image = image_from(args)
    machines = chosen(image, args)
    if args.format == "json":
        from ..render.json import dump

        for piece in dump.dump(image.snapshot, machines, tables):
            sys.stdout.write(piece)
    elif args.format == "html":
        from ..render.html import dump as page

        for piece in page.dump(image.snapshot, machines, tables, args.all):
            sys.stdout.write(piece)
    else:
        from ..render import text
        from ..render.lines import output

        output(text.dump(image.snapshot, machines, tables, args.all))
    _require_something(image, machines, tables)
    return 0


def _require_something(image: Image, machines: list[Machine], tables: tuple[str, ...]) -> None:
    """ImageError when not a single table could be read, with the reason of the first."""
    found = [table for machine in machines for name in tables if (table := machine.table(name)) is not None]
    if found and all(table.error for table in found):
        first = found[0]
        raise ImageError(
            f"{image.path}: no table can be read; the {first.name.upper()} at {first.base:#x}: {first.error}"
        )
