"""Patch the tables of a configuration into a linked kernel, in place.

The kernel is linked once, with space reserved for each table: a symbol, or a section of its own, in a part of the file
that has contents. Handlers, stacks and tables are looked up in the linked kernel, and only the reserved bytes change.
The result is checked before it is written; when the checks refuse it, nothing is written and the status is 1. With
--verify nothing is written either: every address is looked up again, and stale entries are listed, with status 1.
"""

from __future__ import annotations

import os

from ..errors import UsageError
from ..readers import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..api import Image
    from ..assessment import Assessment
    from ..link import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `link`."""
    parser.add_argument("kernel", metavar="KERNEL", help="a linked ELF file with symbols, before strip")
    parser.add_argument("config", metavar="CONFIG", help="a TOML file; `x86tables schema` says what is in it")
    parser.add_argument("-o", "--output", metavar="OUT", help="file for the patched kernel (default: KERNEL itself)")
    parser.add_argument("--base", metavar="ADDR", help="where a position-independent kernel will be loaded")
    parser.add_argument("--verify", action="store_true", help="write nothing; list what is not as declared")
    parser.add_argument("--no-check", action="store_true", help="write even if the checks refuse")


def run(args: argparse.Namespace) -> int:
    """Check, then write; or verify what was written."""
    from .. import link
    from ..api import refusals
    from ..config import load
    from ..render import writing
    from ..render.lines import output

    if args.verify and (args.output is not None or args.no_check):
        raise UsageError("--verify writes nothing: -o and --no-check do not go with it")
    base = None if args.base is None else number(args.base, "--base")
    plan = link.plan(link.read(args.kernel, base), load(args.config))
    if args.verify:
        stale = link.stale(plan)
        output(writing.verified(plan, stale))
        return 1 if stale else 0
    if not args.no_check:
        image, assessments = _checked(plan)
        output(writing.checked(image.snapshot, assessments))
        if refused := [*link.problems(plan), *refusals(image, assessments)]:
            output([*(f"refused: {reason}" for reason in refused), "nothing was written; --no-check writes it anyway"])
            return 1
    out = args.output if args.output is not None else args.kernel
    if os.path.exists(out) and os.path.samefile(out, args.config):
        raise UsageError(f"-o {out}: this is the configuration itself")
    lines = list(writing.written(plan, out))
    link.write(plan, out)
    output(lines)
    return 0


def _checked(plan: Plan) -> tuple[Image, list[Assessment]]:
    """The machines as they will be, and what the checks say of them."""
    from .. import api
    from ..config import image
    from ..link import assumptions

    shown = image(plan.tables, plan.find, plan.kernel.segments)
    remarks = (*shown.remarks, *plan.remarks, *assumptions(plan))
    made = api.Image(shown.replace(remarks=remarks), plan.tables, plan.find)
    return made, made.check()
