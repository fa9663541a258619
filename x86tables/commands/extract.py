"""Write a small image of the memory that matters to the tables.

Runs `dump` and `check --scenario all` on the image and keeps each physical page that they read (page tables included,
also those of walks that failed), the page before and the page after it, and the register notes. The new file holds
no other memory; it is an ELF core for which `dump` and `check` print what they print for the original.
"""

from __future__ import annotations

import os

from ..errors import ImageError, UsageError
from ..machine.memory import PAGE, Recording
from ..outputs import replacing
from ..readers import elfcore
from ._arguments import add_image_arguments, image_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..api import Image
    from ..machine.memory import Memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `extract`."""
    add_image_arguments(parser, several=False)
    parser.add_argument("-o", "--output", metavar="SMALL", required=True, help="the file to write")


def run(args: argparse.Namespace) -> int:
    """Write the small image and say what it holds."""
    recordings: list[Recording] = []

    def record(memory: Memory) -> Memory:
        recordings.append(Recording(memory))
        return recordings[-1]

    _require_a_file(args.output)
    for path in (args.image, args.registers, args.symbols, *(item.rpartition("@")[0] for item in args.map)):
        if path and os.path.exists(path) and os.path.exists(args.output) and os.path.samefile(args.output, path):
            what = "the image itself" if path == args.image else "one of the files to read"
            raise UsageError(f"-o {args.output}: this is {what}")
    from ..render.lines import output

    image = image_from(args, record)
    if image.format == "elf":
        raise UsageError(f"{image.path}: a linked kernel is not a machine's memory: take a memory dump")
    image.touch()
    (recording,) = recordings
    read = set(recording.pages)
    held = [page for page in sorted(read) if any(recording.parts(page, page + PAGE))]
    if not held:
        raise ImageError(
            f"{image.path}: no page that the tables need is in this image ({len(read)} looked for): "
            "take a dump of the whole memory"
        )
    pages = {page + step for page in read for step in (-PAGE, 0, PAGE) if 0 <= page + step < 1 << 64}
    try:
        with replacing([os.path.realpath(args.output)], most=_permissions(args)) as (complete,):
            count = elfcore.write(complete, recording, pages, _notes(image, args), image.machines[0].long_mode)
    except (OSError, ValueError) as error:
        raise UsageError(f"-o {args.output}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    output(_report(args.output, held, count, len(image.machines)))
    return 0


def _require_a_file(path: str) -> None:
    """UsageError when the name is not that of a file, or that of the file to which the report goes."""
    if not os.path.exists(path):
        return
    if not os.path.isfile(path):
        raise UsageError(f"-o {path}: not a file: the small image goes to a file of its own")
    try:
        report = os.fstat(1)
    except OSError:  # closed
        return
    if os.path.samestat(os.stat(path), report):
        raise UsageError(f"-o {path}: this is standard output, where the report goes: name another file")


def _permissions(args: argparse.Namespace) -> int:
    """What all of the files allow whose memory goes into the new one: it may be secret."""
    allowed = 0o777
    for path in (args.image, *(item.rpartition("@")[0] for item in args.map)):
        allowed &= os.stat(path).st_mode
    return allowed


def _notes(image: Image, args: argparse.Namespace) -> bytes:
    """The image's own notes when they say it all, else notes made from the registers as they are known here."""
    ours = elfcore.remarks_note(image.snapshot.of_file) + elfcore.ram_note(image.snapshot.memory)
    given = args.registers or args.reg or args.cr3 or args.gdt or args.idt or args.tss or args.vendor or args.maxphyaddr
    extra = image.snapshot.extra
    if image.snapshot.notes and not given and "found" not in extra:
        return image.snapshot.notes + ours
    more = {name: str(said) for name in ("vendor", "maxphyaddr") if (said := getattr(args, name) or extra.get(name))}
    more |= {name: extra[name] for name in ("cr3", "found", "levels") if name in extra}
    notes = ours
    for machine in image.machines:
        if machine.physical:
            more["physical"] = ",".join(sorted(machine.physical))
        notes += elfcore.cpu_notes(machine.registers, more)
    return notes


def _report(path: str, read: list[int], count: int, cpus: int) -> Iterator[str]:
    size = os.path.getsize(path)
    yield f"{path}: {size} bytes"
    yield f"  registers of {cpus} CPU{'s' if cpus != 1 else ''}"
    yield f"  {len(read)} pages that were read, {count - len(read)} neighbours; no other memory:"
    start = previous = None
    for page in [*read, None]:
        if page is not None and previous is not None and page == previous + PAGE:
            previous = page
            continue
        if start is not None and previous is not None:
            yield f"    {start:#x}..{previous + PAGE - 1:#x}"
        start = previous = page
