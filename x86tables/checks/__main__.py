"""Print docs/rules.md: every rule, from the text that `explain` shows.

A rule of the page it prints:

    ### IDT001: there is no gate for #DF

    *error*. **Why:** when the kernel's stack overflows, ...
"""

from __future__ import annotations

import sys

from . import PHASES, RULES, TABLES, Rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = """\
# Rules

What `x86tables check` looks for. Generated from the rules themselves by `make docs`: do not edit. `x86tables explain
RULE` prints the same in a terminal.

The severity is the usual one; the text says where a case is milder. A rule judges only what the processor can reach: a
stack if a present gate names it, a page of the GDT if it holds a descriptor in use. A rule that needs something the
image does not hold is `not_checked`, and says what is missing; it never passes because an input is missing. The rules
are about 64-bit mode: a CPU in another mode has no findings.
"""


def page() -> Iterator[str]:
    """The lines of docs/rules.md."""
    yield HEAD
    for table, name in TABLES.items():
        yield f"- **{table}**, {name}: " + ", ".join(f"[{r.id}](#{_anchor(r)})" for r in RULES if r.table == table)
    for table, name in TABLES.items():
        yield f"\n## {table}: {name}"
        for rule in RULES:
            if rule.table == table:
                yield from section(rule)


def _anchor(rule: Rule) -> str:
    """The anchor that GitHub makes of a rule's heading."""
    kept = "".join(c for c in _heading(rule).lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _heading(rule: Rule) -> str:
    return f"{rule.id}: {rule.title}"


def section(rule: Rule) -> Iterator[str]:
    """One rule."""
    from textwrap import wrap

    text = rule.sections
    yield f"\n### {_heading(rule)}\n"
    phase = f", for {PHASES[rule.phase]}" if rule.phase else ""
    yield from wrap(f"*{rule.severity}{phase}*. **Why:** {text['Why']}", 120, break_on_hyphens=False)
    yield ""
    yield from wrap(f"**Fix:** {text['Fix']}", 120, break_on_hyphens=False)
    yield "\n```text"
    for head in ("Bad", "Good"):
        first, *rest = text[head].splitlines()
        yield f"{head.lower() + ':':<6}{first}"
        yield from (f"      {line}" for line in rest)
    yield "```"


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()) + "\n")
