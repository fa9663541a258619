"""Run an image's CPUs on an independent CPU model, and compare.

On Bochs the machine runs as it was captured: its registers, its memory, a real push at the guard of its stack. In a
private copy of the memory every handler is replaced by one that pushes to its stack. Exit status 0 when the outcome is
what `--expect` says and each event went as predicted.

On QEMU a configuration (*.toml) becomes a boot image that loads its tables and overflows its stack by recursion. An
ELF kernel, or any guest with `-- QEMU-ARGUMENTS`, runs as it is and is judged by QEMU's log: it `survives` when a
double-fault handler is entered, or a page-fault handler for an address next to the stack pointer, without a triple
fault.
QEMU refuses an ELF64 kernel with a multiboot1 header: `objcopy -O elf32-i386 KERNEL COPY` makes a copy that it runs.
"""

from __future__ import annotations

from ..delivery.scenarios import NOT_APPLICABLE
from ..delivery.simulate import LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN
from ..errors import UsageError
from ._arguments import add_image_arguments, add_judging_arguments, chosen, image_from, options_from
from ._qemu import add_guest_arguments
from ._qemu import run as run_qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ..prove.run import Proof


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prove`."""
    add_image_arguments(parser)
    parser.add_argument("--on", choices=("bochs", "qemu"), required=True, help="the CPU model")
    parser.add_argument("--expect", choices=(SURVIVES, TRIPLE_FAULT, LOOPS, UNKNOWN), default=SURVIVES)
    add_judging_arguments(parser)
    parser.add_argument(
        "--events", action="store_true", help="show the events of every variant, not only of those that decide (text)"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    add_guest_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print what happened; 1 unless it is what was expected and what was predicted."""
    if args.on == "qemu":
        return run_qemu(args)
    if args.guest or args.append is not None or args.seconds is not None:
        raise UsageError("--append, --seconds and QEMU's arguments are for --on qemu")
    image = image_from(args)
    names, options = options_from(args, image)
    from ..prove import bochs
    from ..prove.run import OURS

    for name in names:
        if name in OURS and "all" not in args.scenario:
            raise UsageError(f"--scenario {name}: {OURS[name]}")
    proofs = image.prove(args.on, names, chosen(image, args), options)
    if args.format == "json":
        from ..render.json import output as output_json
        from ..render.json import prove as document

        output_json(document.prove(image.snapshot, proofs, bochs.CPU))
    else:
        from ..render import prove as lines
        from ..render.lines import output

        output(lines.prove(image.snapshot, proofs, bochs.CPU, args.events))
    return status(proofs, args.expect)


def status(proofs: Sequence[Proof], expected: str) -> int:
    """0 when all CPUs do what is expected and predicted; those that it does not apply to count only by themselves."""
    judged = [one for one in proofs if one.verdict != NOT_APPLICABLE]
    return 0 if judged and all(one.agrees and one.verdict == expected for one in judged) else 1
