"""Tell what a `qemu -d int,cpu_reset` log says, in words.

For each fault that could not be delivered: the instruction, what failed in its delivery, what became of it, the first
cause, and the rule that finds it in an image. FILE may be compressed; - is standard input. The rest is counted by
vector. With --in IMAGE, best a memory dump taken afterwards, the delivery is repeated check by check and gates are
named; with --symbols (or an ELF kernel as IMAGE) addresses are.
"""

from __future__ import annotations

from ..errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..machine.image import Image
    from ..qemulog.chains import Account


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `log`."""
    parser.add_argument("file", metavar="FILE", help="what QEMU wrote with -d int,cpu_reset -D FILE")
    parser.add_argument("--in", dest="image", metavar="IMAGE", help="the memory of the machine, or the linked kernel")
    parser.add_argument("--symbols", metavar="FILE", help="an ELF file with symbols, or a System.map")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Print the story; 0 whatever it is."""
    from ..machine.symbols import Symbols
    from ..qemulog import chains, entries

    account = chains.account(entries.read(args.file))
    if not account.counts and not account.resets and not account.chains:
        raise ImageError(
            f"{args.file}: no log of QEMU's: no line like `v=0e e=0002 i=0 cpl=0 IP=...`; make one with "
            "-accel tcg -d int,cpu_reset -D FILE"
        )
    image = None if args.image is None else opened(args.image, account)
    symbols = image.symbols if image is not None else Symbols()
    if args.symbols is not None:
        from ..readers import read_symbols

        symbols = read_symbols(args.symbols)
    from ..render import log

    teller = log.Teller(account, symbols, image)
    if args.format == "json":
        import json

        print(json.dumps(log.data(args.file, teller), indent=1))
    else:
        from ..render import text

        text.output(log.text(args.file, teller))
    return 0


def opened(path: str, account: Account) -> Image:
    """The image, with the registers that the log has where it matters first."""
    from ..machine.image import Options
    from ..readers import open_image

    events = [chain.first for chain in account.chains] + ([account.last.event] if account.last is not None else [])
    found = next((registers for event in events if (registers := event.registers) is not None), None)
    return open_image(path, Options(registers=() if found is None else (found,)))
