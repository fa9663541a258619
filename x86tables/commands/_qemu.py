"""`prove --on qemu`: a configuration's tables in a boot image, or a whole guest, judged by QEMU's log."""

from __future__ import annotations

from ..errors import UsageError
from ..readers import number
from ._arguments import chosen, image_from, options_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import Any

    from ..machine.symbols import Symbols
    from ..prove.qemu import Ending


def add_guest_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments for QEMU alone."""
    group = parser.add_argument_group("with --on qemu")
    group.add_argument("--append", metavar="TEXT", help="the command line of an ELF kernel")
    group.add_argument("--seconds", metavar="N", help="time limit (default 30)")
    group.add_argument("guest", nargs="*", metavar="-- QEMU-ARGUMENT", help="instead of IMAGE: any other guest")


def run(args: argparse.Namespace) -> int:
    """Run it in QEMU; 1 unless it ends as expected, and for a configuration as predicted."""
    from ..prove import qemu as guest

    seconds = float(number(args.seconds, "--seconds", 86400)) if args.seconds is not None else guest.SECONDS
    version = guest.version()
    if args.image.endswith(".toml"):
        return _configuration(args, seconds, version)
    if args.image.startswith("-"):  # the first of QEMU's arguments
        command = [args.image, *args.guest]
        return _guest(args, "qemu " + " ".join(command), guest.watch(command, seconds), version)
    if args.guest:
        raise UsageError("either IMAGE or QEMU's arguments after --: -- -kernel KERNEL ...")
    ending = guest.watch(guest.kernel(args.image, args.append), seconds)
    return _guest(args, args.image, ending, version)


def _configuration(args: argparse.Namespace, seconds: float, version: str) -> int:
    from ..prove.overflow import overflow

    image = image_from(args)
    names, options = options_from(args, image)
    if names != ("stack-overflow",):
        raise UsageError("--on qemu runs a stack overflow and no other scenario: --on bochs runs the rest")
    found = [overflow(machine, options, seconds) for machine in chosen(image, args)]
    from ..render import prove
    from ..render.json import prove as document

    _print(
        args, prove.overflow(image.snapshot, found, version), lambda: document.overflow(image.snapshot, found, version)
    )
    return 0 if found and all(one.verdict == args.expect and not one.differs for one in found) else 1


def _guest(args: argparse.Namespace, title: str, ending: Ending, version: str) -> int:
    from ..render import prove
    from ..render.json import prove as document

    shown = title, ending, _symbols(args), version
    _print(args, prove.guest(*shown), lambda: document.guest(*shown))
    return 0 if ending.verdict == args.expect else 1


def _symbols(args: argparse.Namespace) -> Symbols:
    """Names from `--symbols`, or from the kernel itself where it has some and they can be read."""
    from ..errors import ImageError
    from ..machine.symbols import Symbols
    from ..readers import read_symbols

    if args.symbols is not None:
        return read_symbols(args.symbols)
    try:
        return Symbols() if args.image.startswith("-") else read_symbols(args.image)
    except ImageError:
        return Symbols()


def _print(args: argparse.Namespace, lines: Iterable[str], values: Any) -> None:
    if args.format == "json":
        from ..render.json import output as output_json

        output_json(values())
    else:
        from ..render.lines import output

        output(lines)
