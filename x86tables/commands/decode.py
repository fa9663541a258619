"""Decode one descriptor, gate, selector or error code, bit by bit.

VALUE is one of
  0x00af9b000000ffff       a number, as wide as its digits, leading zeros too
  ff ff 00 00 00 9b af 00  bytes in memory order, with or without spaces
  0x0000ffff 0x00af9b00    words as gdb and QEMU print them (x/2wx, x/1gx), with
                           or without their ADDRESS: column, also pasted as one
  -                        any of these from standard input

KIND is descriptor (a GDT entry: segment, system, call-gate, legacy-gate or legacy-system by its own bits) or one of
segment, system, call-gate, gate, legacy-gate, legacy-system, selector, error-code, page-fault-error,
pseudo-descriptor, pseudo-descriptor32, tss, tss32, frame, error-frame, real-mode-vector, star. A number shorter than
its kind is extended with zeros.

With --in IMAGE an error-code is looked up in the tables of the image: the gate or
descriptor that it names on each CPU, and what is wrong with that; a page-fault-error
with --address ADDR (what CR2 held): the entries of the walk to it.
"""

from __future__ import annotations

import sys

from .. import budgets
from ..decode import EXAMPLE, decode
from ..errors import UsageError
from ..machine.files import standard_input
from ..tables.selector import PageFaultErrorCode, SelectorErrorCode
from ._arguments import add_format_arguments, add_image_arguments, chosen, image_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ..machine.symbols import Symbols
    from ..render.error_lookup import Named
    from ..tables.layout import Layout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `decode` takes."""
    parser.add_argument("value", nargs="+", metavar="VALUE", help="what to decode")
    parser.add_argument("--as", dest="kind", metavar="KIND", help="its kind, where VALUE leaves that open")
    parser.add_argument("--address", metavar="ADDR", help="CR2 of a page-fault-error")
    add_format_arguments(parser, "text", "json", "svg")
    add_image_arguments(parser, option="--in")


def run(args: argparse.Namespace) -> int:
    """Decode one value and print it."""
    text = _standard_input() if args.value == ["-"] else " ".join(args.value)
    kind, value = decode(text, args.kind)
    found, symbols = None, None
    if args.image is not None:
        found, symbols = look_up(args, kind, value)
    elif args.address is not None:
        raise UsageError("--address is looked up in an image: give --in IMAGE")
    if args.format == "json":
        from ..render.json import decode as document
        from ..render.json import output as output_json

        output_json(document.decode(kind, value, found, symbols), 2)
    elif args.format == "svg":
        from ..render.describe import meaning
        from ..render.svg import alone, diagram

        sys.stdout.write(alone([(f"{kind}: {meaning(value)}", diagram(value))]))
    else:
        from ..render import decode as words
        from ..render.lines import output

        output("\n".join(words.text(kind, value, found, symbols)).splitlines())
    return 0


def look_up(args: argparse.Namespace, kind: str, value: Layout) -> tuple[Sequence[Named], Symbols]:
    """What an error code names in an image, CPU by CPU, and the image's symbols."""
    from ..checks import error_lookup
    from ..readers import address

    if not isinstance(value, SelectorErrorCode | PageFaultErrorCode):
        raise UsageError(f"--in: only --as error-code and --as page-fault-error are looked up in an image, not {kind}")
    if isinstance(value, PageFaultErrorCode) == (args.address is None):
        wants = "--address ADDR (CR2)" if args.address is None else "no --address"
        raise UsageError(f"--as {kind} --in takes {wants}")
    image = image_from(args)
    machines = chosen(image, args)
    if isinstance(value, SelectorErrorCode):
        return error_lookup.selector_error(image.snapshot, machines, value), image.symbols
    return error_lookup.page_fault(machines, value, address(args.address, image.symbols)), image.symbols


def _standard_input() -> str:
    try:
        return standard_input().read(budgets.VALUE_TEXT + 1)
    except UnicodeDecodeError:
        raise UsageError(f"standard input is not text: write {EXAMPLE}") from None
