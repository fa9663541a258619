"""What a rule is, what it yields, and the list that every rule joins by its decorator."""

from __future__ import annotations

from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from ..machine.image import Image
    from .cpu import CheckedCpu

    Check: TypeAlias = "Callable[[Image, CheckedCpu], Iterator[Finding]]"

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
DECLARED, LOADED = "declared", "loaded"
PHASES = {DECLARED: "a configuration, before LGDT and LTR", LOADED: "a machine's state, after LGDT and LTR"}
TABLES = {
    "GDT": "the global descriptor table",
    "IDT": "the interrupt descriptor table and its gates",
    "TSS": "the task-state segment and TR",
    "STK": "the stacks that the TSS names",
    "REG": "segment registers against the tables",
    "SYS": "SYSCALL and SYSRET against the GDT",
}


class Finding(Record):
    """Something wrong. `where` is a place without addresses (`idt[8].ist`), the same from boot to boot.

    A rule's body gives a `severity` only where the case at hand differs from the rule's own; who runs the rules fills
    in `severity` and `rule`.
    """

    where: str
    message: str
    severity: str = ""
    rule: str = ""


class NotChecked(Record):
    """A rule that could not be decided in full, and what it lacks."""

    rule: str
    needs: str


class Rule(Record):
    """One row of the catalogue: `severity` is what it usually is; `text` the docstring that `explain` shows.

    `phase` is a key of PHASES; "" for a rule that holds in both.
    """

    id: str
    severity: str
    title: str
    text: str
    check: Check
    phase: str = ""

    @property
    def table(self) -> str:
        """The letters of the identifier: a key of TABLES."""
        return self.id.rstrip("0123456789")

    @property
    def sections(self) -> dict[str, str]:
        """`Why`, `Fix`, `Bad` and `Good` of the docstring; the first two are prose in one line, the others code."""
        found: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in self.text.splitlines():
            head, colon, rest = line.strip().partition(":")
            if colon and head in ("Why", "Fix", "Bad", "Good"):
                lines = found.setdefault(head, [])
                line = rest
            if line.strip():
                lines.append(line.strip())
        return {head: (" " if head in ("Why", "Fix") else "\n").join(text) for head, text in found.items()}


_RULES: dict[str, Rule] = {}


def rule(identifier: str, severity: str, title: str, phase: str = "") -> Callable[[Check], Check]:
    """Make a function a rule. An identifier belongs to one rule for ever: it is never reused or renumbered."""

    def register(check: Check) -> Check:
        assert identifier not in _RULES, f"{identifier} is taken"
        _RULES[identifier] = Rule(identifier, severity, title, check.__doc__ or "", check, phase)
        return check

    return register


def catalogue() -> tuple[Rule, ...]:
    """Every rule, table by table in the order of TABLES, by number."""
    order = list(TABLES)
    return tuple(sorted(_RULES.values(), key=lambda rule: (order.index(rule.table), rule.id)))
