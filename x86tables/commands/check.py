"""Say whether a CPU survives when its stack runs into the guard page.

The first line of each CPU gives two answers: what happens when the stack runs into a page that cannot be pushed to,
and whether the stack in use has such a page below it. Then come the trace and what the rules find; `x86tables explain
RULE` explains a rule. Exit status 1 for any verdict but `survives`, and for a finding of severity error.

IMAGE may be a TOML declaration (*.toml): then the declared tables are judged, before there is a kernel. A stack without
a guard right above another stack or a table is an error there.
"""

from __future__ import annotations

import sys

from ..assessment import Outcome
from ..errors import UsageError
from ._arguments import (
    add_format_arguments,
    add_image_arguments,
    add_judging_arguments,
    chosen,
    image_from,
    opening,
    options_from,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `check`."""
    add_image_arguments(parser, many=True)
    add_judging_arguments(parser)
    rules = parser.add_argument_group("rules")
    rules.add_argument("--select", metavar="RULES", action="append", help="only these, by prefix: IDT,STK002")
    rules.add_argument("--ignore", metavar="RULES", action="append", help="all but these, by prefix: TSS004")
    rules.add_argument("--profile", metavar="NAME", help="rules for what the CPUs are to do: vmx-root (run guests)")
    rules.add_argument("--baseline", metavar="FILE", help="accept the findings in the JSON of an earlier check")
    parser.add_argument("--steps", action="store_true", help="show every check of the trace, passed ones too (text)")
    parser.add_argument("--jobs", metavar="N", default="1", help="processes, for several images (default 1)")
    add_format_arguments(parser, "text", "json", "jsonl", "sarif", "html", "svg")


def run(args: argparse.Namespace) -> int:
    """Print the verdicts; 1 unless every CPU that it applies to survives."""
    if len(args.image) > 1:
        return _several(args)
    (args.image,) = args.image
    image = image_from(args)
    names, options = options_from(args, image)
    outcome = Outcome(image.problems())
    assessments = image.assessments(
        names,
        rules=args.select,
        ignore=args.ignore,
        baseline=args.baseline,
        profile=args.profile,
        cpus=chosen(image, args),
        options=options,
    )
    passing = outcome.of(assessments)
    if args.format == "text":
        from ..render import verdict
        from ..render.lines import output

        output(verdict.check(image.snapshot, passing, args.steps, outcome.problems))
    elif args.format == "json":
        from ..render.json import check

        for piece in check.check(image.snapshot, passing, outcome):
            sys.stdout.write(piece)
    elif args.format == "jsonl":
        from ..render.json import check

        print(check.line(image.snapshot, passing, outcome))
    elif args.format in ("html", "svg"):
        from ..render.html import check as page

        made = page.svg(image.snapshot, passing)
        if args.format == "html":
            made = page.check(image.snapshot, passing, outcome.problems)
        for piece in made:
            sys.stdout.write(piece)
    else:
        from ..render import sarif
        from ..render.json import output as output_json

        output_json(sarif.log(image, list(passing), outcome.problems))
    return outcome.status


def _several(args: argparse.Namespace) -> int:
    """A line for each of several images."""
    from . import _many

    if args.cpu is not None or args.stack is not None:
        raise UsageError(f"--{'stack' if args.cpu is None else 'cpu'} is for one image; {len(args.image)} are given")
    names, options = options_from(args, None)
    judging = {"scenarios": names, "rules": args.select, "ignore": args.ignore, "baseline": args.baseline}
    return _many.check(args, opening(args), judging | {"profile": args.profile, "options": options})
