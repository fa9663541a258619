"""What `explain` prints: rules."""

from __future__ import annotations

from ...checks import PHASES, SEVERITIES
from ...documents import Answer, Document, one_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...checks import Rule


class RuleJson(Document, severity=one_of(*SEVERITIES), phase=one_of(*PHASES, None)):
    """One rule.

    phase: judged in a declaration or in a loaded machine only; null: in both
    """

    rule: str
    severity: str
    title: str
    phase: str | None
    why: str
    fix: str
    bad: str
    good: str


class ExplainJson(Answer):
    """Some rules."""

    rules: list[RuleJson]


def explain(rules: Iterable[Rule]) -> ExplainJson:
    """What `explain --format json` prints."""
    return ExplainJson(rules=[_rule(rule) for rule in rules])


def _rule(rule: Rule) -> RuleJson:
    sections = {name.lower(): text for name, text in rule.sections.items()}
    return RuleJson.of(rule, rule=rule.id, phase=rule.phase or None, **sections)
