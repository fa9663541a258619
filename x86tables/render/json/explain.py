"""What `explain` prints: rules, and other topics."""

from __future__ import annotations

from ...checks import PHASES, PROFILES, SEVERITIES
from ...documents import Answer, Document, one_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...checks import Rule
    from ..glossary import Topic


class RuleJson(Document, severity=one_of(*SEVERITIES), phase=one_of(*PHASES, None), profile=one_of(*PROFILES, None)):
    """One rule.

    phase: judged in a declaration or in a loaded machine only; null: in both
    profile: judged only when this profile is asked for; null: always
    """

    rule: str
    severity: str
    title: str
    phase: str | None
    profile: str | None
    why: str
    fix: str
    bad: str
    good: str


class TopicJson(Document):
    """Something else that output names.

    figure: its bits, as text; "" where it has none
    """

    name: str
    title: str
    text: str
    source: str
    figure: str


class ExplainJson(Answer):
    """Some rules, or what a word means."""

    rules: list[RuleJson]
    topics: list[TopicJson]


def explain(rules: Iterable[Rule], topics: Iterable[Topic] = ()) -> ExplainJson:
    """What `explain --format json` prints."""
    return ExplainJson(rules=[_rule(rule) for rule in rules], topics=[TopicJson.of(topic) for topic in topics])


def _rule(rule: Rule) -> RuleJson:
    sections = {name.lower(): text for name, text in rule.sections.items()}
    return RuleJson.of(rule, rule=rule.id, phase=rule.phase or None, profile=rule.profile or None, **sections)
