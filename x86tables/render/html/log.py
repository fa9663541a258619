"""A QEMU log as a page: the headline, each chain of faults as its events, the first cause with its rule, the counts."""

from __future__ import annotations

from ...checks import RULES
from ...tables.vectors import label
from .. import log as words
from ..markup import Markup, element, join
from .page import badge, code, page, pairs, paragraph, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...machine.symbols import Symbols
    from ...qemulog.chains import Count
    from ...qemulog.report import LogReport, ReportedChain, ReportedEvent


def log(path: str, report: LogReport, symbols: Symbols, remarks: Sequence[str] = ()) -> Iterator[str]:
    """The pieces of the page; `remarks` are those on the image and its symbols."""
    return page(f"{path}: x86tables log", _blocks(path, report, symbols, remarks))


def _blocks(path: str, report: LogReport, symbols: Symbols, remarks: Sequence[str]) -> Iterator[Markup]:
    found, groups = report.log, report.alike
    yield paragraph(f"{path}: {found.lines} lines of QEMU's log", "about")
    yield from (paragraph(f"note: {remark}", "about") for remark in remarks)
    head = element("h1", f"{words.HEADLINES[found.outcome]}{words.when(report)}.")
    first = pairs(_cause(groups[0][0], symbols, short=True)) if groups else None
    yield element("section", head, first, class_=f"answer {found.outcome}")
    for alike in groups[: words.SHOWN]:
        yield from _chain(alike, symbols)
    if hidden := sum(len(alike) for alike in groups[words.SHOWN :]) + found.others:
        yield paragraph(f"{hidden} more chains like these (--format json has {len(report.chains)}).")
    if found.repeated is not None:
        yield element("h2", "To the end of the log")
        yield paragraph(f"{label(found.repeated.event.vector)}: {words.repeated(found.repeated, symbols)}.")
    yield element("h2", "All events")
    if found.counts:
        rows = [_count(count) for count in found.counts]
        yield table("Events by vector", ("vector", "kind", "count", "in ring 3", "lines"), rows)
    else:
        yield paragraph("No events in protected or 64-bit mode.")
    if found.last is not None and not found.chains:
        event = found.last.event
        where = f"in ring {event.cpl} at {words.place(event, symbols)}, line {event.line}"
        yield paragraph(f"The last exception: {label(event.vector)} {where}.")
    if found.resets:
        number = f"{found.resets} reset blocks" if found.resets > 1 else "1 reset block"
        only = "power-on prints them too; only a `Triple fault` line means a triple fault"
        yield paragraph(f"{number}: {only}.", "about")


def _chain(alike: list[ReportedChain], symbols: Symbols) -> Iterator[Markup]:
    one = alike[0]
    chain, end = one.chain, words.ending(one.chain)
    yield element("h2", f"{', '.join(map(words.name, one.events))}, line {chain.first.line}")
    items = [_event(one, number, symbols) for number in range(len(one.events))]
    if end:
        outcome = "triple-fault" if chain.verdict == "triple-fault" else "unknown"
        items.append(element("li", paragraph(join(badge(outcome), f" {end}")), class_=f"end {outcome}"))
    yield element("ol", *items, class_="events")
    if chain.times > 1:
        yield paragraph(f"{chain.times} times, the last one from line {chain.last}.")
    also = [("also at", places)] if (places := words.elsewhere(alike[1:], symbols)) else []
    yield pairs([*_cause(one, symbols), *also])


def _event(one: ReportedChain, number: int, symbols: Symbols) -> Markup:
    reported: ReportedEvent = one.events[number]
    event, why = reported.attempt.event, words.failed(reported, symbols)
    where = f"at {words.place(event, symbols)}, ring {event.cpl}, "
    if number and event.rip == one.chain.first.rip:
        where = ""
    gate = words.gate(reported, symbols)
    end = element("p", f"not delivered: {why}", class_="failed") if why else paragraph("its handler was entered")
    return element(
        "li",
        element("h3", words.name(reported), ": ", words.what(reported, not number, symbols)),
        paragraph(f"{where}line {event.line}", "quiet"),
        None if gate is None else paragraph(code(gate)),
        end,
        class_="failed" if why else None,
    )


def _cause(one: ReportedChain, symbols: Symbols, short: bool = False) -> list[tuple[str, object]]:
    """The first cause, and the rule with its fix."""
    rows: list[tuple[str, object]] = [("first cause", words.cause(one, symbols))]
    rule = next((rule for rule in RULES if rule.id == one.rule), None)
    if rule is not None:
        if not short:
            rows.append(("rule", f"{rule.id}: {rule.title}"))
            rows.append(("why", rule.sections["Why"]))
        rows.append(("what to fix", f"{rule.id}: {rule.sections['Fix']}"))
        if not one.certain:
            rows.append(("how certain", "as far as the log shows; --in IMAGE, with a memory dump, makes it certain"))
    return rows


def _count(count: Count) -> tuple[object, ...]:
    lines = f"{count.first}" if count.first == count.last else f"{count.first}..{count.last}"
    return words.vector(count).strip(), count.origin, f"{count.total:,}", f"{count.user:,}", lines
