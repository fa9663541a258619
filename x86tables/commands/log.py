"""Explain a `qemu -d int` log: which faults could not be delivered.

For each of them: the instruction, what failed in its delivery, how it ended, the first cause, and the rule that finds
it in an image. All other events are counted by vector. FILE may be compressed; - is standard input.
With --in IMAGE, best a memory dump taken afterwards, each delivery is repeated check by check, and gates are decoded;
with --symbols (or an ELF kernel as IMAGE) addresses have names.
"""

from __future__ import annotations

import sys

from .. import api
from ..errors import ImageError, UsageError
from ._arguments import add_format_arguments, optional

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..api import Image
    from ..qemulog.chains import Log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `log`."""
    parser.add_argument("file", metavar="FILE", help="what QEMU wrote with -d int,cpu_reset -D FILE")
    parser.add_argument(
        "--in", dest="image", metavar="IMAGE", help="a memory dump of the machine, or the linked kernel"
    )
    parser.add_argument("--symbols", metavar="FILE", help="an ELF file with symbols, or a System.map")
    parser.add_argument("--kaslr-offset", metavar="N", help="KASLR offset of the kernel (default: worked out)")
    add_format_arguments(parser, "text", "json", "html")


def run(args: argparse.Namespace) -> int:
    """Print what the log shows; 0 whatever that is."""
    from ..machine.symbols import Symbols
    from ..qemulog import chains, entries
    from ..qemulog.report import report

    log = chains.read_log(entries.read(args.file))
    if not log.counts and not log.resets and not log.chains:
        raise ImageError(
            f"{args.file}: not a QEMU log: no line like `v=0e e=0002 i=0 cpl=0 IP=...`; make one with "
            "-accel tcg -d int,cpu_reset -D FILE"
        )
    image = None if args.image is None else opened(args, log)
    offset = optional(args.kaslr_offset, "--kaslr-offset")
    symbols = Symbols()
    if image is not None:
        symbols = image.symbols
    elif args.symbols is not None:
        from ..readers import read_symbols

        symbols = read_symbols(args.symbols).moved(offset or 0)
    found = report(log, None if image is None else image.snapshot)
    if args.format == "json":
        from ..render.json import output as output_json
        from ..render.json.log import log as document

        output_json(document(args.file, found, symbols))
        return 0
    remarks = image.remarks if image is not None and args.symbols else ()
    if args.format == "html":
        from ..render.html.log import log as page

        sys.stdout.writelines(page(args.file, found, symbols, remarks))
    else:
        from ..render.lines import output
        from ..render.log import text

        output(text(args.file, found, symbols, remarks))
    return 0


def opened(args: argparse.Namespace, log: Log) -> Image:
    """The image, with the registers that the log has where it matters first."""
    if args.image.endswith(".toml"):
        raise UsageError(f"--in {args.image}: a configuration: a memory dump or a linked kernel expected")
    events = [chain.first for chain in log.chains] + ([log.last.event] if log.last is not None else [])
    found = next((registers for event in events if (registers := event.registers) is not None), None)
    return api.open(
        args.image,
        registers=() if found is None else (found,),
        symbols=args.symbols,
        kaslr_offset=optional(args.kaslr_offset, "--kaslr-offset"),
    )
