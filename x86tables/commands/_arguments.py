"""The arguments that every command on images shares, and the image that they name."""

from __future__ import annotations

from .. import budgets
from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from ..api import Image
    from ..delivery.scenarios import ScenarioOptions
    from ..machine.machine import Machine
    from ..machine.memory import Memory


def add_image_arguments(
    parser: argparse.ArgumentParser, *, several: bool = True, option: str | None = None, many: bool = False
) -> None:
    """IMAGE and its options; with `option`, IMAGE itself is optional; with `many` there may be several."""
    text = "a memory dump or saved state, a linked ELF kernel" + (
        ", a running machine (qmp:SOCKET, gdb:HOST:PORT), or a TOML declaration (*.toml)" if several else ""
    )
    if option is None:
        parser.add_argument("image", metavar="IMAGE", nargs="+" if many else None, help=text)
    else:
        parser.add_argument(option, dest="image", metavar="IMAGE", help=text)
    where = parser.add_argument_group("where things are, if the image does not say")
    where.add_argument("--gdt", metavar="ADDR[,LIMIT]", help="base of the GDT: 0x..., decimal, symbol, or phys:ADDR")
    where.add_argument("--idt", metavar="ADDR[,LIMIT]", help="base of the IDT")
    where.add_argument("--tss", metavar="ADDR[,LIMIT]", help="base of the TSS")
    where.add_argument("--base", metavar="ADDR", help="physical address of the first byte of flat memory")
    where.add_argument(
        "--map", metavar="FILE@PHYS", action="append", default=[], help="overlay physical memory with a file"
    )
    where.add_argument(
        "--image-format",
        metavar="FORMAT",
        help="one of elfcore, elf, kdump, lime, migration, vmware, crashdump, raw (default: by content)",
    )
    state = parser.add_argument_group("registers that the image does not hold")
    state.add_argument("--registers", metavar="FILE", help="text of QEMU's `info registers -a`, or a regs.json")
    state.add_argument("--reg", metavar="NAME=VALUE", action="append", default=[], help="one register")
    state.add_argument("--cr3", metavar="ADDR", help="the page tables; other addresses are then linear")
    state.add_argument("--vendor", choices=("intel", "amd"), help="whose double-fault rules apply (default intel)")
    state.add_argument("--maxphyaddr", metavar="N", help="physical address width (default 52)")
    names = parser.add_argument_group("names")
    names.add_argument("--symbols", metavar="FILE", help="an ELF file with symbols, or a System.map")
    names.add_argument("--kaslr-offset", metavar="N", help="KASLR offset of the kernel (default: worked out)")
    if several:
        parser.add_argument("--cpu", metavar="N", help="only this CPU")


def add_format_arguments(parser: argparse.ArgumentParser, *formats: str) -> None:
    """`--format`, the first one by default, and the file for what is printed."""
    parser.add_argument("--format", choices=formats, default=formats[0])
    parser.add_argument("-o", dest="printed", metavar="FILE", help="a file for what is printed, written when complete")


def image_from(args: argparse.Namespace, wrap: Callable[[Memory], Memory] | None = None) -> Image:
    """The image that the arguments name; `wrap` stands between it and its memory."""
    from .. import api  # here, because decode seldom reads an image

    return api.open(args.image, wrap=wrap, progress=progress, **opening(args))


def opening(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say of how an image is opened."""
    from ..readers import number

    reg, maps = {}, []
    for item in args.reg:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--reg {item}: NAME=VALUE expected")
        reg[name.lower()] = number(value, f"--reg {name}"[:40])
    for item in args.map:
        file, at, place = item.rpartition("@")
        if not at:
            raise UsageError(f"--map {item}: FILE@PHYS expected")
        maps.append((file, number(place, "--map")))
    bits = optional(args.maxphyaddr, "--maxphyaddr")
    if bits is not None and not 32 <= bits <= 52:
        raise UsageError(f"--maxphyaddr {bits}: 32..52")
    return {
        "symbols": args.symbols,
        "registers": args.registers,
        "reg": reg,
        "gdt": args.gdt,
        "idt": args.idt,
        "tss": args.tss,
        "cr3": optional(args.cr3, "--cr3"),
        "base": optional(args.base, "--base"),
        "map": maps,
        "format": args.image_format,
        "vendor": args.vendor,
        "maxphyaddr": bits,
        "kaslr_offset": optional(args.kaslr_offset, "--kaslr-offset"),
    }


def progress(total: int) -> Callable[[int], object]:
    """A bar on a terminal for what takes over a second: a function to call with the bytes of each step."""
    import sys

    if sys.stderr is None or not sys.stderr.isatty():
        return int
    try:
        from tqdm import tqdm
    except ImportError:  # an extra
        return int
    bar = tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, delay=1, leave=False)

    def step(count: int) -> None:
        bar.update(count)
        if bar.n >= total:
            bar.close()

    return step


def optional(text: str | None, where: str) -> int | None:
    """The number of an optional option."""
    from ..readers import number

    return None if text is None else number(text, where)


def chosen(image: Image, args: argparse.Namespace) -> list[Machine]:
    """The machines that `--cpu` asks for: one, or all."""
    number = optional(args.cpu, "--cpu")
    return list(image.machines) if number is None else [image.cpu(number)]


def add_judging_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the scenarios."""
    from ..delivery.scenarios import SCENARIOS
    from ..delivery.simulate import HANDLER_STACK
    from ..delivery.stacks import STACK_SIZE

    judging = parser.add_argument_group("scenarios")
    judging.add_argument(
        "--scenario", metavar="NAME", action="append", default=[], help=f"{', '.join(SCENARIOS)}, or all"
    )
    judging.add_argument(
        "--handler-stack", metavar="N", help=f"bytes of stack that a handler needs (default {HANDLER_STACK})"
    )
    judging.add_argument(
        "--stack", metavar="ADDR", help="a stack pointer into the stack to judge (default: RSP, or RSP0)"
    )
    judging.add_argument("--stack-size", metavar="N", help=f"a guard lies within so many bytes (default {STACK_SIZE})")
    judging.add_argument("--frame", metavar="N", help="largest stack frame of a function (default 4096)")


def options_from(args: argparse.Namespace, image: Image | None) -> tuple[tuple[str, ...], ScenarioOptions]:
    """The scenarios that the arguments name, and their options; without an image no stack is named."""
    from ..assessment import scenario_names
    from ..delivery.scenarios import ScenarioOptions
    from ..delivery.stacks import STACK_SIZE
    from ..readers import address, number

    names = scenario_names(args.scenario)
    used = handler_stack(args)
    frame = 4096 if args.frame is None else number(args.frame, "--frame", budgets.FRAME)
    size = STACK_SIZE if args.stack_size is None else number(args.stack_size, "--stack-size", budgets.STACK_SIZE)
    stack = None if args.stack is None or image is None else address(args.stack, image.symbols, "--stack")
    return names, ScenarioOptions(used, stack, frame, size)


def handler_stack(args: argparse.Namespace) -> int:
    """What `--handler-stack` says: the bytes that a handler pushes."""
    from ..delivery.simulate import HANDLER_STACK
    from ..readers import number

    if args.handler_stack is None:
        return HANDLER_STACK
    return number(args.handler_stack, "--handler-stack", budgets.HANDLER_STACK)
