"""Rules and findings, and the decorator that puts a rule into the catalogue."""

from __future__ import annotations

from ..records import Record
from ..tables.vectors import ranges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from ..machine.image import Snapshot
    from .cpu import CheckedCpu

    Check: TypeAlias = "Callable[[Snapshot, CheckedCpu], Iterator[Finding]]"

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
DECLARED, LOADED = "declared", "loaded"
PHASES = {DECLARED: "a configuration, before LGDT and LTR", LOADED: "a machine's state, after LGDT and LTR"}
PROFILES = {"vmx-root": "a CPU from which a monitor is to run guests"}
TABLES = {
    "GDT": "the global descriptor table",
    "IDT": "the interrupt descriptor table and its gates",
    "TSS": "the task-state segment and TR",
    "STK": "the stacks that the TSS names, and the one that is interrupted",
    "REG": "registers against the tables, and against those of other CPUs",
    "SYS": "SYSCALL and SYSRET against the GDT",
}


class Finding(Record):
    """Something wrong, and where: a table or register, the entries of it, and their field.

    `table` is `gdt`, `idt`, `tss` or the name of a register. `index` is one entry or several, None for a place that
    is not in an entry; `field` is one field or several, "" for the whole. A rule's body gives a `severity` only where
    the case at hand differs from the rule's own; `judge` fills in `severity` and `rule`.
    """

    table: str
    index: int | tuple[int, ...] | None
    field: str | tuple[str, ...]
    message: str
    severity: str = ""
    rule: str = ""

    @property
    def entries(self) -> tuple[int, ...]:
        """The entries of the table that it is about."""
        return (self.index,) if isinstance(self.index, int) else self.index or ()

    @property
    def where(self) -> str:
        """The place without addresses (`idt[8].ist`, `tss.ist1,ist2`), the same from boot to boot."""
        fields = self.field if isinstance(self.field, str) else ",".join(self.field)
        entries = f"[{ranges(self.entries)}]" if self.entries else ""
        return self.table + entries + (f".{fields}" if fields else "")


class NotChecked(Record):
    """A rule that could not be decided in full, and the missing input."""

    rule: str
    needs: str


class Rule(Record):
    """One row of the catalogue: `severity` is the usual one, `text` the docstring that `explain` shows.

    `phase` is a key of PHASES; "" for a rule that holds in both. `profile` is a key of PROFILES for a rule that is run
    only when that is asked for.
    """

    id: str
    severity: str
    title: str
    text: str
    check: Check
    phase: str = ""
    profile: str = ""

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


def rule(identifier: str, severity: str, title: str, phase: str = "", profile: str = "") -> Callable[[Check], Check]:
    """Make a function a rule. Identifiers are never reused or renumbered."""

    def register(check: Check) -> Check:
        assert identifier not in _RULES, f"{identifier} is taken"
        _RULES[identifier] = Rule(identifier, severity, title, check.__doc__ or "", check, phase, profile)
        return check

    return register


def catalogue() -> tuple[Rule, ...]:
    """Every rule, table by table in the order of TABLES, by number."""
    order = list(TABLES)
    return tuple(sorted(_RULES.values(), key=lambda rule: (order.index(rule.table), rule.id)))
