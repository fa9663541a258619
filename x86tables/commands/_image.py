"""The arguments that every command on images shares, and the image that they name."""

from __future__ import annotations

from ..errors import UsageError
from ..machine.image import Image, Options
from ..readers import FORMATS, number, open_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from ..machine.machine import Machine
    from ..machine.memory import Memory
    from ..machine.registers import Registers

MOST_TEXT = 1 << 22  # bytes of registers: those of a thousand CPUs


def add_image_arguments(parser: argparse.ArgumentParser, *, several: bool = True, option: str | None = None) -> None:
    """IMAGE and what may be said of it; as an `option` it need not be given."""
    text = "an ELF core, a linked ELF kernel, or flat memory"
    if option is None:
        parser.add_argument("image", metavar="IMAGE", help=text)
    else:
        parser.add_argument(option, dest="image", metavar="IMAGE", help=text)
    where = parser.add_argument_group("where things are, in an image that does not know")
    where.add_argument("--gdt", metavar="ADDR[,LIMIT]", help="base of the GDT: 0x..., decimal, symbol, or phys:ADDR")
    where.add_argument("--idt", metavar="ADDR[,LIMIT]", help="base of the IDT")
    where.add_argument("--tss", metavar="ADDR[,LIMIT]", help="base of the TSS")
    where.add_argument("--base", metavar="ADDR", help="physical address of the first byte of flat memory")
    where.add_argument(
        "--map", metavar="FILE@PHYS", action="append", default=[], help="lay a file over physical memory"
    )
    where.add_argument("--image-format", metavar="FORMAT", help=f"one of {', '.join(FORMATS)} (default: by content)")
    state = parser.add_argument_group("what the registers hold")
    state.add_argument("--registers", metavar="FILE", help="text of QEMU's `info registers -a`")
    state.add_argument("--reg", metavar="NAME=VALUE", action="append", default=[], help="one register")
    state.add_argument("--cr3", metavar="ADDR", help="the page tables; addresses are linear then")
    state.add_argument("--vendor", choices=("intel", "amd"), help="whose double-fault classes (default intel)")
    state.add_argument("--maxphyaddr", metavar="N", help="physical address width (default 52)")
    names = parser.add_argument_group("names")
    names.add_argument("--symbols", metavar="FILE", help="an ELF file with symbols, or a System.map")
    names.add_argument("--kaslr-offset", metavar="N", help="how far the kernel was moved (default: worked out)")
    if several:
        parser.add_argument("--cpu", metavar="N", help="only this CPU")


def image_from(args: argparse.Namespace, wrap: Callable[[Memory], Memory] | None = None) -> Image:
    """The image that the arguments name; `wrap` stands between it and its memory."""
    if args.image.endswith(".toml"):
        return _configured(args, wrap is not None)
    registers: tuple[Registers, ...] = ()
    if args.registers is not None:
        from ..machine.files import load
        from ..readers import monitor

        content = load(args.registers)
        if len(content) > MOST_TEXT:
            raise UsageError(
                f"--registers {args.registers}: more than {MOST_TEXT:#x} bytes: cut out the block that counts"
            )
        text = content[:].decode("utf-8", "replace")
        registers = monitor.parse(text, args.registers)
    changes = {}
    for item in args.reg:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--reg {item}: NAME=VALUE expected")
        changes[name.lower()] = number(value, f"--reg {name}"[:40])
    if args.cr3 is not None:
        changes["cr3"] = number(args.cr3, "--cr3")
    maps = []
    for item in args.map:
        file, at, place = item.rpartition("@")
        if not at:
            raise UsageError(f"--map {item}: FILE@PHYS expected")
        maps.append((file, number(place, "--map")))
    bits = None if args.maxphyaddr is None else number(args.maxphyaddr, "--maxphyaddr")
    if bits is not None and not 32 <= bits <= 52:
        raise UsageError(f"--maxphyaddr {bits}: 32..52")
    return open_image(
        args.image,
        Options(
            format=args.image_format,
            base=None if args.base is None else number(args.base, "--base"),
            gdt=args.gdt,
            idt=args.idt,
            tss=args.tss,
            registers=registers,
            changes=changes,
            maps=tuple(maps),
            vendor=args.vendor,
            maxphyaddr=bits,
            symbols=args.symbols,
            kaslr_offset=None if args.kaslr_offset is None else number(args.kaslr_offset, "--kaslr-offset"),
            memory=wrap,
        ),
    )


def _configured(args: argparse.Namespace, wrapped: bool) -> Image:
    """A configuration as an image; its own choice of rules stands where the command line makes none."""
    if wrapped:
        raise UsageError(f"{args.image}: a configuration has no pages of a machine: an image is expected")
    for name in ("gdt", "idt", "tss", "base", "map", "image_format", "registers", "cr3", "kaslr_offset"):
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is for images: {args.image} says it itself")
    from ..config.kernel import open_config

    tables, image = open_config(args.image, args.symbols)
    for name in ("select", "ignore"):
        if getattr(args, name, None) == []:
            setattr(args, name, list(getattr(tables.config.check, name)))
    return image


def chosen(image: Image, args: argparse.Namespace) -> list[Machine]:
    """The machines that `--cpu` asks for: one, or all."""
    if args.cpu is None:
        return list(image.machines)
    wanted = number(args.cpu, "--cpu")
    if not 0 <= wanted < len(image.machines):
        raise UsageError(f"--cpu {wanted}: {image.path} has CPUs 0..{len(image.machines) - 1}")
    return [image.machines[wanted]]
