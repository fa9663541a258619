"""Find page tables, IDTs, GDTs and TSSs in memory without registers.

Candidates by their shape are confirmed through each other: page tables that map an IDT's handlers as code, a GDT that
has the gates' code segment, a TSS that a descriptor of it names. Each machine has a score with its reasons; `dump`,
`check` and the others use the best one for an image that does not say where its tables are. Exit status 1 when nothing
was found.
"""

from __future__ import annotations

from ..errors import UsageError
from ..readers import memory_of, number
from ..scan import scan
from ._arguments import progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scan`."""
    parser.add_argument("image", metavar="IMAGE", help="memory in any format: an ELF core, a raw dump")
    parser.add_argument("--base", metavar="ADDR", help="physical address of the first byte of flat memory")
    parser.add_argument(
        "--image-format",
        metavar="FORMAT",
        help="one of elfcore, elf, kdump, lime, migration, vmware, crashdump, raw (default: by content)",
    )
    parser.add_argument("--cr3", metavar="ADDR", help="look for what belongs to these page tables")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Print the machines that were found; 0 if there is one."""
    from .. import live

    base = None if args.base is None else number(args.base, "--base")
    cr3 = None if args.cr3 is None else number(args.cr3, "--cr3")
    if live.named(args.image):
        raise UsageError(
            f"{args.image}: scan reads a file: `x86tables capture {args.image} --whole -o FILE` writes one"
        )
    memory, name = memory_of(args.image, args.image_format, base)
    found = scan(memory, cr3, note=progress(memory.written))
    if args.format == "json":
        from ..render.json import output as output_json
        from ..render.json import scan as document

        output_json(document.scan(args.image, name, found))
    else:
        from ..render import scan as text
        from ..render.lines import output

        output(text.scan(args.image, name, found))
    return 0 if found.machines else 1
