"""Say whether a CPU survives when its stack runs into the guard page, and why.

The first line holds two answers: what happens when the stack has run into a page that cannot be pushed to, and
whether the stack in use has such a page below it. What the rules find stands below; `x86tables explain RULE` tells
more of it. Exit status 1 for any verdict but `survives`, and for a finding of severity error.
"""

from __future__ import annotations

from .. import checks
from ..checks import selection
from ..delivery.scenarios import NOT_APPLICABLE, SCENARIOS, Judgement, Options, judge
from ..delivery.simulate import HANDLER_STACK, SURVIVES
from ..errors import UsageError
from ..readers import number
from ._image import add_image_arguments, chosen, image_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ..checks import Report
    from ..machine.image import Image
    from ..machine.machine import Machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `check`."""
    add_image_arguments(parser)
    add_judging_arguments(parser)
    add_rule_arguments(parser)
    parser.add_argument("--steps", action="store_true", help="every check of the trace, passed ones too (text)")
    parser.add_argument("--format", choices=("text", "json", "sarif"), default="text")


def add_judging_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be said of the scenarios."""
    judging = parser.add_argument_group("what is judged")
    judging.add_argument(
        "--scenario", metavar="NAME", action="append", default=[], help=f"{', '.join(SCENARIOS)}, or all"
    )
    judging.add_argument("--handler-stack", metavar="N", help=f"bytes that a handler pushes (default {HANDLER_STACK})")
    judging.add_argument("--stack", metavar="ADDR", help="a stack pointer on the stack to judge (default: RSP, RSP0)")
    judging.add_argument("--frame", metavar="N", help="the largest frame of a function (default 4096)")


def add_rule_arguments(parser: argparse.ArgumentParser) -> None:
    """Which rules, and which findings are known."""
    rules = parser.add_argument_group("which rules")
    rules.add_argument(
        "--select", metavar="RULES", action="append", default=[], help="only these, by prefix: IDT,STK002"
    )
    rules.add_argument("--ignore", metavar="RULES", action="append", default=[], help="not these, by prefix: TSS004")
    rules.add_argument("--baseline", metavar="FILE", help="accept the findings in the JSON of an earlier check")


def reports_from(args: argparse.Namespace, image: Image, machines: Sequence[Machine]) -> list[Report]:
    """What the chosen rules find on some of an image's CPUs, without what is known."""
    rules = selection.select(args.select, args.ignore)
    known = selection.read_baseline(args.baseline) if args.baseline is not None else None
    reports = checks.judge(image, machines, rules)
    return reports if known is None else selection.without(reports, known)


def options_from(args: argparse.Namespace, image: Image) -> tuple[tuple[str, ...], Options]:
    """The scenarios that the arguments name, and what they say of them."""
    from ..readers import address

    names = tuple(args.scenario) or ("stack-overflow",)
    for name in names:
        if name != "all" and name not in SCENARIOS:
            raise UsageError(f"--scenario {name}: one of {', '.join(SCENARIOS)}, all")
    used = HANDLER_STACK if args.handler_stack is None else number(args.handler_stack, "--handler-stack")
    frame = 4096 if args.frame is None else number(args.frame, "--frame")
    if not 0 <= used <= 1 << 24 or not 0 <= frame <= 1 << 30:
        raise UsageError("--handler-stack takes 0 to 16 MiB, --frame 0 to 1 GiB")
    stack = None if args.stack is None else address(args.stack, image.symbols, "--stack")
    return tuple(SCENARIOS) if "all" in names else names, Options(used, stack, frame)


def run(args: argparse.Namespace) -> int:
    """Print the verdicts; 1 unless every CPU that it applies to survives."""
    image = image_from(args)
    names, options = options_from(args, image)
    machines = chosen(image, args)
    reports = reports_from(args, image, machines)
    judgements = [judge(machine, names, options) for machine in machines]
    from ..render import findings

    if args.format == "sarif":
        import json

        from ..render import sarif

        print(json.dumps(sarif.log(image, judgements, reports), indent=1))
    elif args.format == "json":
        import json

        from ..render.json import check

        print(json.dumps(check.check(image, judgements, reports), indent=1))
    else:
        from ..render import text, verdict

        text.output(verdict.check(image, judgements, args.steps, [findings.lines(report) for report in reports]))
    return 1 if any(report.failed for report in reports) else status(judgements)


def status(judgements: Sequence[Judgement]) -> int:
    """0 when all survive; CPUs that it does not apply to count only when there are no others."""
    verdicts = {judgement.verdict for judgement in judgements}
    return 0 if verdicts - {NOT_APPLICABLE} == {SURVIVES} else 1
