"""Verdicts as a page: the answer in a sentence, then each CPU with its stacks, the delivery, variants and findings."""

from __future__ import annotations

from ...checks import RULES
from ...delivery.occupants import Occupant
from ...delivery.scenarios import ORDER
from ...delivery.simulate import HANDLER_STACK
from ...machine.probe import Fault
from ...tables.vectors import label, ranges
from .. import findings as rules
from .. import verdict as words
from ..markup import Markup, element, join
from ..svg import alone
from .page import about, badge, code, opens, page, pairs, paragraph, table
from .stacks import pictures
from .trace import sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ...assessment import Assessment
    from ...checks import Finding
    from ...delivery.scenarios import Scenario, Variant
    from ...delivery.stacks import InterruptStack
    from ...machine.image import Snapshot
    from ...machine.symbols import Symbols

LETTERS = {"survives": "s", "triple-fault": "T", "loops": "L", "unknown": "?", "not-applicable": "-"}


def check(image: Snapshot, assessments: Iterable[Assessment], problems: Sequence[str] = ()) -> Iterator[str]:
    """The pieces of the page; `problems` are what a configuration says against itself."""
    groups: dict[object, tuple[Assessment, list[int]]] = {}
    for assessment in assessments:
        groups.setdefault(words.kind(assessment), (assessment, []))[1].append(assessment.cpu)
    return page(f"{image.path}: x86tables check", _blocks(image, list(groups.values()), problems))


def svg(image: Snapshot, assessments: Iterable[Assessment]) -> Iterator[str]:
    """The stacks of every CPU as one picture; of CPUs that fare alike those of the first."""
    found: dict[object, Assessment] = {}
    for assessment in assessments:
        found.setdefault(words.kind(assessment), assessment)
    yield alone(
        [(f"{image.path}, CPU {one.cpu}. {caption}", each) for one in found.values() for caption, each in pictures(one)]
    )


def _blocks(
    image: Snapshot, groups: Sequence[tuple[Assessment, list[int]]], problems: Sequence[str]
) -> Iterator[Markup]:
    yield about(image)
    yield from (paragraph(join(badge("error"), f" {problem}")) for problem in problems)
    worst, which = max(groups, key=lambda group: ORDER.index(group[0].verdict))
    yield _answer(worst, which, image.symbols, len(image.machines) > 1)
    outlines: dict[object, int] = {}
    for assessment, cpus in groups:
        yield element("h2", f"CPU{'s' if len(cpus) > 1 else ''} {ranges(cpus)}")
        if len(cpus) > 1:
            yield paragraph(f"They fare alike; addresses are those of CPU {assessment.cpu}.", "quiet")
        yield _facts(assessment, image.symbols, told=assessment is worst)
        if not assessment.machine.wide:
            continue
        yield from _stacks(assessment)
        first = outlines.setdefault(assessment.outline, assessment.cpu)
        if first != assessment.cpu:
            yield paragraph(f"The rest is like CPU {first}.")
            continue
        yield from _delivery(assessment, image.symbols)
        yield from _scenarios(assessment, image.symbols)
        yield from _findings(assessment)


def _answer(assessment: Assessment, cpus: Sequence[int], symbols: Symbols, several: bool) -> Markup:
    """The worst CPU's answer in a sentence, why, and what to fix."""
    whose = f"CPU{'s' if len(cpus) > 1 else ''} {ranges(cpus)}: " if several else ""
    finding = assessment.first_to_fix
    reason = f"{assessment.reason}{words.handler_name(assessment.overflow, symbols)}"
    fix = [] if finding is None else [("what to fix", f"{finding.rule}: {rules.fix(finding)}.")]
    return element(
        "section",
        element("h1", whose, badge(assessment.verdict), words.answer(assessment)),
        pairs([("why", reason), *fix]),
        class_=f"answer {assessment.verdict}",
    )


def _facts(assessment: Assessment, symbols: Symbols, told: bool) -> Markup:
    """The stack and what was assumed; the answer too, where it does not stand on top."""
    machine, overflow = assessment.machine, assessment.overflow
    rows: list[tuple[str, object]] = []
    if not told:
        rows.append(("verdict", join(badge(assessment.verdict), words.answer(assessment))))
        rows.append(("why", f"{overflow.reason}{words.handler_name(overflow, symbols)}"))
    if machine.wide:
        rows.append(("stack", join(badge(assessment.stack.verdict), f" {words.stack_line(assessment.stack)}")))
    rows += [("note", remark) for remark in overflow.remarks]
    if machine.assumed:
        rows.append(("assumed", "; ".join(machine.assumed)))
    return pairs(rows)


def _stacks(assessment: Assessment) -> Iterator[Markup]:
    figures = [
        element("figure", element("figcaption", caption), drawn.markup()) for caption, drawn in pictures(assessment)
    ]
    if not figures:
        return
    yield element("h3", "Stacks")
    yield element("div", *figures, class_="figures")
    if assessment.interrupt_stacks:
        most = max(stack.extent.size for stack in assessment.interrupt_stacks)
        yield table(
            f"Interrupt stacks; {HANDLER_STACK} bytes let a handler start, printing a panic takes more",
            ("stack", "top", "size, and what ends it", "used by"),
            [_bar(stack, most) for stack in assessment.interrupt_stacks],
        )


def _bar(stack: InterruptStack, most: int) -> tuple[object, ...]:
    extent = stack.extent
    end = "guard" if isinstance(extent.below, Fault) else "over" if isinstance(extent.below, Occupant) else "unknown"
    width = f"width: {100 * extent.size // max(most, 1)}%"
    bar = element("span", class_=f"bar {end}", style=width)
    return (
        stack.pointer.name,
        code(f"{stack.pointer.top:#x}"),
        join(bar, words.depth(extent)),
        words.users(stack) or "no gate",
    )


def _delivery(assessment: Assessment, symbols: Symbols) -> Iterator[Markup]:
    yield element("h3", "What happens, step by step")
    yield from _worst(assessment, assessment.overflow, symbols)
    yield _variants(assessment.overflow)


def _worst(assessment: Assessment, scenario: Scenario, symbols: Symbols) -> Iterator[Markup]:
    """The variant that decided."""
    worst = scenario.worst
    if worst is None or worst.simulation is None:
        yield paragraph(scenario.reason)
        return
    yield paragraph(f"The variant that decides: {worst.name}.")
    yield sequence(assessment.machine, worst.simulation, symbols)


def _scenarios(assessment: Assessment, symbols: Symbols) -> Iterator[Markup]:
    for scenario in assessment.scenarios:
        if scenario is assessment.overflow:
            continue
        yield element("h3", scenario.name)
        yield paragraph(join(badge(scenario.verdict), f" {scenario.reason}"))
        if scenario.name == "survival-matrix" and scenario.variants and scenario.variants[0].simulation is not None:
            yield from _heat_maps(scenario)
        elif scenario.variants:
            yield _variants(scenario)
        if scenario.worst is not None and scenario.worst.verdict not in ("survives", "unknown"):
            yield opens("the variant that decides, step by step", *_worst(assessment, scenario, symbols))


def _variants(scenario: Scenario) -> Markup:
    """Each variant with its verdict."""
    rows = [(variant.name, badge(variant.verdict), variant.reason) for variant in scenario.variants]
    return opens(
        f"all {len(rows)} variants" if len(rows) > 1 else "the one variant",
        table(f"The variants of {scenario.name}", ("variant", "verdict", "why"), rows),
    )


def _heat_maps(scenario: Scenario) -> Iterator[Markup]:
    """Every vector from each start: a map of 16 by 16, and what does not survive in words."""
    starts: dict[str, dict[int, Variant]] = {}
    for variant in scenario.variants:
        if variant.simulation is not None:
            vector = variant.simulation.deliveries[0].attempts[0].event.vector
            starts.setdefault(variant.name.rpartition(" from ")[2], {})[vector] = variant
    yield paragraph("; ".join(f"{letter}: {name}" for name, letter in LETTERS.items() if name[0] != "n"), "quiet")
    yield element("div", *(_heat_map(start, variants) for start, variants in starts.items()), class_="figures")
    for start, variants in starts.items():
        alike: dict[tuple[str, str], list[int]] = {}
        for vector, variant in variants.items():
            if variant.verdict != "survives":
                alike.setdefault((variant.verdict, variant.reason), []).append(vector)
        for (verdict, reason), vectors in alike.items():
            yield paragraph(join(badge(verdict), f" {', '.join(map(label, vectors[:16]))}", f" from {start}: {reason}"))


def _heat_map(start: str, variants: dict[int, Variant]) -> Markup:
    head = element("tr", element("td", ""), *(element("th", f"{low:x}", scope="col") for low in range(16)))
    rows = []
    for high in range(0, 256, 16):
        cells = []
        for vector in range(high, high + 16):
            verdict = variants[vector].verdict
            title = f"{label(vector)}: {verdict}"
            cells.append(element("td", element("abbr", LETTERS[verdict], title=title), class_=verdict))
        rows.append(element("tr", element("th", f"{high:#04x}", scope="row"), *cells))
    caption = element("caption", f"Every vector from {start}")
    return element("table", caption, element("thead", head), element("tbody", *rows), class_="heat")


def _findings(assessment: Assessment) -> Iterator[Markup]:
    known = f" ({assessment.accepted} known, not shown)" if assessment.accepted else ""
    yield element("h3", f"Findings{known}")
    if not assessment.findings:
        yield paragraph("None.")
    yield from map(_finding, assessment.findings)
    by_needs: dict[str, list[str]] = {}
    for gap in assessment.not_checked:
        by_needs.setdefault(gap.needs, []).append(gap.rule)
    if by_needs:
        rows = [(rules.rule_names(names), needs) for needs, names in by_needs.items()]
        yield element("h3", "Not checked")
        yield pairs(rows)


def _finding(finding: Finding) -> Markup:
    rule = next(rule for rule in RULES if rule.id == finding.rule)
    where = code(finding.where.replace(",", ", "))
    return element(
        "div",
        element("h4", badge(finding.severity), f" {finding.rule}: {rule.title}, ", where),
        paragraph(finding.message),
        opens("why, and how to fix it", pairs([("why", rule.sections["Why"]), ("fix", rule.sections["Fix"])])),
        class_="finding",
    )
