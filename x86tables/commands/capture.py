"""Keep the memory of a running machine, or what matters of it.

LIVE is qmp:SOCKET or qmp:HOST:PORT, QEMU's -qmp, or gdb:HOST:PORT, its -gdb. The machine is stopped for a moment, and
goes on. The file is an ELF core with the registers of all CPUs, for which `dump` and `check` say what they say of the
machine; with --whole, QEMU writes it (`dump-guest-memory`), on its own host.
"""

from __future__ import annotations

import os

from ..errors import UsageError
from ..outputs import replacing

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..api import Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `capture`."""
    parser.add_argument("live", metavar="LIVE", help="a running machine: qmp:SOCKET, qmp:HOST:PORT, gdb:HOST:PORT")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--whole", action="store_true", help="all of its memory")


def run(args: argparse.Namespace) -> int:
    """Write the core and say what it holds."""
    from .. import api, live
    from ..render.lines import output

    if not live.named(args.live):
        raise UsageError(f"{args.live}: {live.FORMS} expected")
    if args.whole:
        live.dump(args.live, os.path.abspath(args.output))
        output([f"{args.output}: written by QEMU"])
        return 0
    image = api.open(args.live)
    count = keep(image, args.output)
    cpus = len(image.machines)
    size = os.path.getsize(args.output)
    output([f"{args.output}: {size} bytes, {count} pages, registers of {cpus} CPU{'s' if cpus != 1 else ''}"])
    return 0


def keep(image: Image, path: str) -> int:
    """Write what is held of a running machine as a core that only its owner may read; how many pages."""
    from ..machine.memory import PAGE
    from ..readers import elfcore

    memory = image.snapshot.memory
    pages = {page for known in memory.ranges for page in range(known.start, known.stop, PAGE)}
    notes = elfcore.ram_note(memory) + b"".join(elfcore.cpu_notes(machine.registers) for machine in image.machines)
    with replacing([os.path.realpath(path)], mode=0o600) as (complete,):
        return elfcore.write(complete, memory, pages, notes, image.machines[0].long_mode)
