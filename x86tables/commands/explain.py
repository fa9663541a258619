"""Explain a rule, verdict, vector, error code, field or register.

WORD is
  IDT004              a rule: why it exists, and how to fix what it finds
  triple-fault        a verdict or a scenario
  #DF, 14, #PF(0x2)   a vector by mnemonic or number, also with an error code
  0x402               an error code
  gate.ist, tss.rsp0  a field, as in findings too: idt[8].ist; gate: all of it
  cr4, star           a register

Without WORD, all rules are listed, by table.
"""

from __future__ import annotations

from ..checks import PHASES, PROFILES, RULES, TABLES
from ..checks.selection import find
from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from ..checks import Rule
    from ..render.glossary import Topic

WIDTH = 90


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `explain`."""
    parser.add_argument("word", metavar="WORD", nargs="?", help="what to explain (default: list all rules)")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Print the explanation of one word, or the list of all rules or of a table's."""
    from ..render.lines import output

    tables = [table for table in TABLES if args.word is None or table == args.word.upper()]
    rules = tuple(rule for rule in RULES if rule.table in tables)
    topics: Sequence[Topic] = ()
    if not rules:
        rules, topics = look_up(args.word)
    if args.format == "json":
        from ..render.json import explain as document
        from ..render.json import output as output_json

        output_json(document.explain(rules, topics))
    else:
        output(listing(tables) if tables else explanation(rules[0]) if rules else topic_lines(topics))
    return 0


def look_up(word: str) -> tuple[tuple[Rule, ...], Sequence[Topic]]:
    """The rule or the topics of a name; UsageError that names the nearest rule when it looks like one."""
    from ..render import glossary

    if word[:3].upper() in TABLES and word[3:].isdecimal():
        return (find(word),), ()
    try:
        return (), glossary.find(word)
    except UsageError as error:
        if any(table.startswith(word[:2].upper()) for table in TABLES):
            find(word)
        raise error from None


def topic_lines(topics: Iterable[Topic]) -> Iterator[str]:
    """Title, sentences, figure and source of each topic."""
    from textwrap import wrap

    for number, topic in enumerate(topics):
        yield from ("",) if number else ()
        yield topic.title
        yield from wrap(topic.text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        yield from topic.figure.splitlines()
        yield f"  See {topic.source}."


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
    if rule.profile:
        yield f"        judged with --profile {rule.profile}: {PROFILES[rule.profile]}"
    for head in ("Why", "Fix"):
        yield ""
        yield from wrap(f"{head}: {rule.sections[head]}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    for head in ("Bad", "Good"):
        yield ""
        yield f"{head}:"
        yield from (f"  {line}" for line in rule.sections[head].splitlines())
