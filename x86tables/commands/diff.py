"""Compare two machines, CPUs, or a declaration and a machine.

A and B are images or configurations; FILE#N is CPU N of a file, FILE#0 FILE#1 two CPUs of one. Compared are gates,
descriptors, stack pointers, limits, protection bits, verdicts, sizes of interrupt stacks, and findings. Addresses that
only moved (KASLR, another boot) are no difference, and neither is what a CPU happens to do: RIP, RSP, CR3. A
configuration needs addresses: --symbols KERNEL.elf. Exit status 1 when they differ.
"""

from __future__ import annotations

import os
import sys

from .. import api
from ..errors import UsageError
from ._arguments import add_format_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `diff`."""
    parser.add_argument("before", metavar="A", help="an image or a configuration (*.toml), or FILE#CPU")
    parser.add_argument("after", metavar="B", help="another one")
    parser.add_argument(
        "--symbols",
        metavar="FILE",
        action="append",
        default=[],
        help="names and addresses of both; given twice: of A, then of B",
    )
    add_format_arguments(parser, "text", "json", "html")


def run(args: argparse.Namespace) -> int:
    """Print what differs; 1 when something does."""
    if len(args.symbols) > 2:
        raise UsageError(f"--symbols {args.symbols[2]}: one for both, or one for A and one for B")
    symbols = (args.symbols * 2)[:2] or [None, None]
    (first, one), (second, other) = _named(args.before), _named(args.after)
    before = api.open(first, symbols=symbols[0])
    after = before if second == first and symbols[0] == symbols[1] else api.open(second, symbols=symbols[1])
    if after is before and one is None and other is None:
        after = api.open(second, symbols=symbols[1])
    from ..difference import compare_images

    found, _, _ = compare_images(before, after, (one, other))
    if args.format == "json":
        from ..render.json import diff as document
        from ..render.json import output as output_json

        output_json(document.diff(before, after, found))
    elif args.format == "html":
        from ..render.html.difference import diff

        sys.stdout.writelines(diff(before, after, (args.before, args.after), found))
    else:
        from ..render import difference
        from ..render.lines import output

        output(difference.text(before, after, (args.before, args.after), found))
    return 1 if any(each.differences for each in found) else 0


def _named(text: str) -> tuple[str, int | None]:
    """The file, and the CPU that is named behind `#`."""
    path, mark, number = text.rpartition("#")
    if not mark or os.path.exists(text):
        return text, None
    if not (number.isascii() and number.isdecimal() and len(number) < 6):
        raise UsageError(f"{text}: FILE#CPU expected, CPU a number")
    return path, int(number)
