"""A simulation as a list of events, each with its steps; what a step read opens."""

from __future__ import annotations

from ...delivery.evidence import evidence
from ...delivery.simulate import stack_name
from ...machine.probe import PageEntry
from ...tables.vectors import label
from .. import trace as words
from ..markup import Markup, element, join
from ..svg import sequence as drawn
from .page import badge, bits, code, opens, paragraph

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...delivery.events import Attempt, Step
    from ...delivery.simulate import Simulation
    from ...machine.machine import Machine
    from ...machine.symbols import Symbols
    from ..svg import Picture


class _Card:
    """One box of the sequence: its heading, its steps, whether the last of them failed."""

    def __init__(self, heading: str, steps: Sequence[Step], shown: Sequence[Step], failed: bool) -> None:
        self.heading, self.steps, self.shown, self.failed = heading, steps, shown, failed


def _cards(one: Simulation) -> Iterator[_Card | str]:
    """The boxes in order; a string between them says what was left out."""
    for number, delivery in enumerate(one.deliveries):
        if one.loop is not None and number == one.loop.at:
            yield words.loop(one.loop)
        before: Attempt | None = None
        for attempt in delivery.attempts:
            cause = ""
            if before is not None and before.fault is not None:
                cause = f": {before.fault.label} while delivering {before.event.label}"
            shown = [step for step in attempt.steps if words.telling(step, attempt)]
            yield _Card(words.event_line(attempt.event) + cause, attempt.steps, shown, attempt.fault is not None)
            before = attempt
        if number < len(one.handlers):
            handler = one.handlers[number]
            heading = f"{label(handler.vector)} handler on {stack_name(one.deliveries[: number + 1])}"
            yield _Card(heading, handler.steps, handler.steps, handler.fault is not None)
    if one.loop is not None and one.loop.at >= len(one.deliveries):
        yield words.loop(one.loop)


def sequence(machine: Machine, one: Simulation, symbols: Symbols) -> Markup:
    """The delivery, step by step; the check that failed is marked, with what it read."""
    items = []
    for card in _cards(one):
        if isinstance(card, str):
            items.append(element("li", paragraph(f"... {card}")))
            continue
        rest = None
        if len(card.steps) > len(card.shown):
            every = _steps(machine, card.steps, card.failed, symbols)
            rest = opens(f"all {len(card.steps)} checks", every, class_="more")
        steps = _steps(machine, card.shown, card.failed, symbols)
        items.append(element("li", element("h4", card.heading), steps, rest, class_="failed" if card.failed else None))
    end = paragraph(join(badge(one.outcome), f" {words.ENDINGS[one.outcome]}: {one.reason}"))
    items.append(element("li", end, class_=f"end {one.outcome}"))
    return element("ol", *items, class_="events")


def _steps(machine: Machine, steps: Sequence[Step], failed: bool, symbols: Symbols) -> Markup:
    items = []
    for step in steps:
        wrong = failed and step is steps[-1]
        address = None if step.address is None else code(f"{step.address:#x}")
        found = words.found(step, symbols)
        said = join("failed: ", found) if wrong else found
        row = element("span", step.step, class_="step"), element("span", address), element("span", said)
        items.append(element("li", *row, _read(machine, step, wrong), class_="failed" if wrong else None))
    return element("ol", *items, class_="steps")


def _read(machine: Machine, step: Step, failed: bool) -> Markup | None:
    """The bytes that a step read."""
    read = evidence(machine, step, failed)
    if read is None:
        return None
    if isinstance(read, PageEntry):
        return element("span", f"read: {read.name} at ", code(f"{read.address:#x}"), " = ", code(f"{read.value:#x}"))
    return bits(join("read: ", code(bytes(read).hex(" "))), read)


def picture(one: Simulation, symbols: Symbols, every: bool = False) -> Picture:
    """The same as a drawing."""
    cards: list[tuple[str, str, list[tuple[str, str]]]] = []
    for card in _cards(one):
        if isinstance(card, str):
            cards.append(("gap", f"... {card}", []))
            continue
        lines = []
        for step in card.steps if every else card.shown:
            address = "" if step.address is None else f"{step.address:#x}"
            wrong = card.failed and step is card.steps[-1]
            lines.append((f"{step.step:<16}{address:<19} {words.found(step, symbols)}", "bad" if wrong else ""))
        cards.append(("failed" if card.failed else "card", card.heading, lines))
    kind = {"survives": "guard", "triple-fault": "over", "loops": "over"}.get(one.outcome, "unknown")
    cards.append((kind, f"{words.ENDINGS[one.outcome]}: {one.reason}", []))
    return drawn("the delivery, step by step", cards)
