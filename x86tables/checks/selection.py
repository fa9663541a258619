"""Which rules are run, and which findings are accepted as known."""

from __future__ import annotations

from ..errors import ImageError, UsageError
from ..machine.files import load
from . import PROFILES, RULES, Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from .catalogue import Rule

    Known: TypeAlias = "frozenset[tuple[int | None, str, str]]"


def select(only: Iterable[str] = (), ignore: Iterable[str] = (), profile: str | None = None) -> tuple[Rule, ...]:
    """The rules whose identifiers begin with one of `only` (default: all) and with none of `ignore`; those of a profile
    only when it is given.

    Each item may hold several prefixes with commas. UsageError for a prefix of no rule, or an unknown profile.
    """
    if profile is not None and profile not in PROFILES:
        raise UsageError(f"--profile {profile}: one of {', '.join(PROFILES)}")
    wanted, unwanted = _prefixes(only), _prefixes(ignore)
    return tuple(
        rule
        for rule in RULES
        if rule.profile in ("", profile)
        if (not wanted or rule.id.startswith(wanted)) and not (unwanted and rule.id.startswith(unwanted))
    )


def find(identifier: str) -> Rule:
    """The rule of this name; UsageError that names the nearest when there is none."""
    for rule in RULES:
        if rule.id == identifier.upper():
            return rule
    raise UsageError(_no_rule(identifier))


def _prefixes(items: Iterable[str]) -> tuple[str, ...]:
    prefixes = tuple(prefix.strip().upper() for item in items for prefix in item.split(","))
    for prefix in prefixes:
        if not prefix or not any(rule.id.startswith(prefix) for rule in RULES):
            raise UsageError(_no_rule(prefix))
    return prefixes


def _no_rule(name: str) -> str:
    from difflib import get_close_matches

    # a name with a digit is meant to be a rule, not a table
    tables = () if any(letter.isdigit() for letter in name) else dict.fromkeys(rule.table for rule in RULES)
    names = [*tables, *(rule.id for rule in RULES)]
    near = get_close_matches(name.upper(), names, 1, 0.4)
    return f"no rule {name!r}; {f'did you mean {near[0]}? ' if near else ''}`x86tables explain` lists all"


def read_baseline(path: str) -> Known:
    """Findings to accept: what `check --format json` wrote, or `{"accepted": [{"rule", "where", "cpu"?}]}`.

    A finding is known by CPU, rule and place, not by its message, whose addresses change from boot to boot. Without
    `cpu` it is accepted on every CPU.
    """
    import json

    try:
        document = json.loads(bytes(load(path)[:]))
        if "accepted" in document:
            return frozenset((row.get("cpu"), row["rule"], row["where"]) for row in document["accepted"])
        return frozenset((cpu["cpu"], row["rule"], row["where"]) for cpu in document["cpus"] for row in cpu["findings"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        what = 'the JSON of `check --format json`, or {"accepted": [{"rule": ..., "where": ...}]}'
        raise ImageError(f"{path}: not a baseline: {what} is expected") from None


def without(reports: Iterable[Report], known: Known) -> list[Report]:
    """The reports with new findings only."""
    left = []
    for report in reports:
        cpu = report.machine.cpu
        new = [f for f in report.findings if not {(cpu, f.rule, f.where), (None, f.rule, f.where)} & known]
        left.append(report.replace(findings=tuple(new), accepted=len(report.findings) - len(new)))
    return left
