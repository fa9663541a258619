"""Findings of rules: as text below a verdict."""

from __future__ import annotations

from ..checks import RULES
from .lines import coloured, width, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..assessment import Assessment
    from ..checks import Finding, Report


def lines(report: Report | Assessment) -> Iterator[str]:
    """The lines that `check` prints of one CPU: what was found, what was not checked, and where to read on."""
    if not report.machine.long_mode:
        return
    yield ""
    known = f" ({report.accepted} known, not shown)" if report.accepted else ""
    yield f"  findings{known}" if report.findings else f"  no findings{known}"
    for finding in report.findings:
        pad = " " * (8 - len(finding.severity))
        yield from _place(f"    {coloured(finding.severity)}{pad} {finding.rule}  ", finding.where)
        yield from wrap(f"             {finding.message}", " " * 13)
    by_needs: dict[str, list[str]] = {}
    for gap in report.not_checked:
        by_needs.setdefault(gap.needs, []).append(gap.rule)
    for needs, rules in by_needs.items():
        yield from wrap(f"  not checked: {rule_names(rules)} ({needs})", "    ")
    if report.findings:
        yield f"  `x86tables explain {report.findings[0].rule}` says why, and how to fix it"


def fix(finding: Finding) -> str:
    """The first sentence of what its rule advises."""
    advice = next(rule for rule in RULES if rule.id == finding.rule).sections["Fix"]
    return advice.partition(". ")[0].removesuffix(".")


def _place(head: str, where: str) -> Iterator[str]:
    """Where a finding is; a long list of vectors is broken at its commas."""
    if len(head + where) <= width():
        yield head + where
        return
    for line in wrap(head + where.replace(",", ", "), " " * 13):
        yield line.replace(", ", ",")


def rule_names(rules: list[str]) -> str:
    """Identifiers, three and more that follow one another in the catalogue as `TSS006..TSS010`."""
    order = [rule.id for rule in RULES]
    runs: list[list[str]] = []
    for rule in rules:
        if runs and order.index(runs[-1][-1]) + 1 == order.index(rule) and runs[-1][0][:3] == rule[:3]:
            runs[-1].append(rule)
        else:
            runs.append([rule])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)
