"""Explain a rule: why it exists, and how to fix what it finds.

Without RULE, all rules are listed, by table; with the letters of a table, its rules. `check` prints the identifiers.
"""

from __future__ import annotations

from ..checks import PHASES, RULES, TABLES
from ..checks.selection import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from ..checks import Rule

WIDTH = 90


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `explain`."""
    parser.add_argument(
        "rule",
        metavar="RULE",
        nargs="?",
        help="an identifier such as IDT004, or a table such as IDT (default: list all)",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Print the explanation of one rule, or the list of all or of a table's."""
    tables = [table for table in TABLES if args.rule is None or table == args.rule.upper()]
    rules = tuple(rule for rule in RULES if rule.table in tables) or (find(args.rule),)
    if args.format == "json":
        from ..render.json import explain as document
        from ..render.json import output as output_json

        output_json(document.explain(rules))
    else:
        for line in listing(tables) if tables else explanation(rules[0]):
            print(line)
    return 0


def listing(tables: Iterable[str]) -> Iterator[str]:
    """The rules of some tables, a line each."""
    for table in tables:
        yield f"{table}  {TABLES[table]}"
        for rule in RULES:
            if rule.table == table:
                yield f"  {rule.id}  {rule.severity:<8} {rule.title}"
    yield "`x86tables explain RULE` says why, and how to fix it."


def explanation(rule: Rule) -> Iterator[str]:
    """Title, Why, Fix and the example of one rule."""
    from textwrap import wrap

    yield f"{rule.id}  {rule.severity}: {rule.title}"
    if rule.phase:
        yield f"        judged for {PHASES[rule.phase]}"
    for head in ("Why", "Fix"):
        yield ""
        yield from wrap(f"{head}: {rule.sections[head]}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    for head in ("Bad", "Good"):
        yield ""
        yield f"{head}:"
        yield from (f"  {line}" for line in rule.sections[head].splitlines())
