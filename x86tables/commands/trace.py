"""Show one delivery step by step: what is read, and what decides.

The event starts from the registers in the image, or from those given. The trace goes on after the delivery: whether the
handler's first instruction can be fetched, and whether it has the stack that handlers need.
"""

from __future__ import annotations

import sys

from ..delivery.events import EXCEPTION, INT, INT1, INTERRUPT, NMI, PF, TRAP, Event
from ..delivery.rings import in_ring0, in_ring3
from ..delivery.simulate import HANDLER_STACK
from ..errors import UsageError
from ..readers import number
from ..tables import vectors
from ._arguments import add_format_arguments, add_image_arguments, chosen, handler_stack, image_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..api import Image
    from ..machine.machine import Machine
    from ..machine.registers import Registers

KINDS = (EXCEPTION, TRAP, INTERRUPT, NMI, INT, INT1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `trace`."""
    add_image_arguments(parser)
    event = parser.add_argument_group("the event")
    event.add_argument("--vector", metavar="N", required=True, help="0..255 or a mnemonic: 14, '#PF', 0x80")
    event.add_argument("--kind", choices=KINDS, help="default: by the vector")
    event.add_argument("--error-code", metavar="N", help="error code of an exception (default 0)")
    event.add_argument("--cr2", metavar="ADDR", help="faulting address of a #PF")
    event.add_argument("--cpl", choices=("0", "3"), help="privilege level (default: as captured)")
    event.add_argument("--rsp", metavar="ADDR", help="RSP at the event")
    event.add_argument("--rip", metavar="ADDR", help="RIP at the event")
    parser.add_argument(
        "--handler-stack", metavar="N", help=f"bytes of stack that a handler needs (default {HANDLER_STACK})"
    )
    parser.add_argument("--steps", action="store_true", help="show every check, passed ones too (text)")
    add_format_arguments(parser, "text", "json", "svg")


def run(args: argparse.Namespace) -> int:
    """Print the trace for each CPU in long mode."""
    event = _event(args)
    used = handler_stack(args)
    image = image_from(args)
    machines = [machine for machine in chosen(image, args) if machine.wide]
    if not machines:
        raise UsageError(f"{image.path}: no CPU is in 64-bit mode: only that can be traced")
    traced = []
    for machine in machines:
        registers = _registers(machine, args, image)
        traced.append((machine, registers, image.simulate(event, machine.cpu, registers, used)))
    if args.format == "json":
        from ..render.json import output as output_json
        from ..render.json import trace as document

        output_json(document.trace(image.snapshot, event, traced))
    elif args.format == "svg":
        from ..render.html.trace import picture
        from ..render.svg import alone

        said = f"{event.label} on CPU "
        drawn = [(f"{said}{one.cpu}", picture(found, image.symbols, args.steps)) for one, _, found in traced]
        sys.stdout.write(alone(drawn))
    else:
        from ..render import trace
        from ..render.lines import output

        output(trace.trace(image.snapshot, event, traced, args.steps))
    return 0


def _event(args: argparse.Namespace) -> Event:
    named = args.vector.upper() in vectors.BY_MNEMONIC
    vector = vectors.number(args.vector if named else number(args.vector, "--vector"))
    kind = args.kind or (NMI if vector == 2 else EXCEPTION if vector < 32 else INTERRUPT)
    code = None if args.error_code is None else number(args.error_code, "--error-code")
    cr2 = None if args.cr2 is None else number(args.cr2, "--cr2")
    if kind != EXCEPTION and code is not None:
        raise UsageError(f"--error-code: only an exception has one, not an event of kind {kind}")
    if cr2 is not None and (kind, vector) != (EXCEPTION, PF):
        raise UsageError("--cr2: only a page fault (--vector 14) has an address")
    if kind == NMI and vector != 2:
        raise UsageError(f"--kind nmi: an NMI has vector 2, not {vector}")
    if kind == EXCEPTION and vector > 31:
        raise UsageError(f"--kind exception: exceptions have vectors 0..31, not {vector}")
    if code is not None and not 0 <= code < 1 << 32:
        raise UsageError(f"--error-code {code:#x}: an error code has 32 bits")
    return Event(vector, kind, code, {INT: 2, INT1: 1}.get(kind, 0), cr2)


def _registers(machine: Machine, args: argparse.Namespace, image: Image) -> Registers:
    """The registers when it happens."""
    from ..readers import address

    registers = machine.registers
    if args.cpl == "3" and registers.cpl != 3:
        registers = in_ring3(machine)
    elif args.cpl == "0" and registers.cpl != 0:
        registers, _ = in_ring0(machine)
    given = {name: getattr(args, name) for name in ("rsp", "rip")}
    return registers.replace(**{name: address(text, image.symbols) for name, text in given.items() if text is not None})
