"""Verdicts and traces as plain values, ready for JSON."""

from __future__ import annotations

from ..delivery.events import DELIVERED
from ..tables.vectors import label
from .data import SCHEMA, about, hexadecimal, registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ..delivery.events import Delivery, Event, Step
    from ..delivery.scenarios import Judgement, Scenario
    from ..delivery.simulate import Loop, Simulation
    from ..delivery.stacks import StackInUse
    from ..machine.image import Image
    from ..machine.machine import Machine
    from ..machine.registers import Registers
    from ..machine.symbols import Symbols


def check(image: Image, judgements: Iterable[Judgement]) -> dict[str, Any]:
    """What `check --format json` prints, without findings of rules."""
    return {
        "schema": SCHEMA,
        "image": about(image),
        "cpus": [_judgement(judgement, image.symbols) for judgement in judgements],
    }


def _judgement(judgement: Judgement, symbols: Symbols) -> dict[str, Any]:
    overflow = judgement.overflow
    return {
        "cpu": judgement.machine.cpu,
        "verdict": judgement.verdict,
        "reason": overflow.reason,
        "handled_by": _handled_by(overflow, symbols),
        "assumed": list(judgement.machine.assumed),
        "remarks": list(overflow.remarks),
        "stack": _stack(judgement.stack),
        "rooms": [
            {
                "stack": room.name,
                "top": hexadecimal(room.top),
                "size": room.size,
                "below": room.below,
                "vectors": list(room.vectors),
            }
            for room in judgement.rooms
        ],
        "scenarios": [_scenario(scenario, symbols) for scenario in judgement.scenarios],
        "findings": [],
        "not_checked": [],
    }


def _handled_by(scenario: Scenario, symbols: Symbols) -> dict[str, Any] | None:
    if scenario.handled_by is None or scenario.worst is None or scenario.worst.simulation is None:
        return None
    vector, stack = scenario.handled_by
    rip = scenario.worst.simulation.registers.rip
    name = None if rip is None else symbols.name(rip)
    told = {"vector": vector, "stack": stack, "handler": hexadecimal(rip), "name": name}
    return told | ({"line": symbols.line(rip)} if symbols.lined and rip is not None else {})


def _stack(stack: StackInUse) -> dict[str, Any]:
    """The answer about the stack in use; `guard` is the address of the guard page."""
    guard = stack.guard
    return {
        "verdict": stack.verdict,
        "reason": stack.reason,
        "rsp": hexadecimal(stack.rsp),
        "guard": None if guard is None else hexadecimal((guard.top - 1) % (1 << 64) & ~0xFFF),
        "kind": None if guard is None else guard.kind,
        "distance": stack.distance,
        "beyond": stack.beyond,
    }


def _scenario(scenario: Scenario, symbols: Symbols) -> dict[str, Any]:
    """A scenario with the trace of its worst way."""
    told = scenario.worst.simulation if scenario.worst is not None else None
    return {
        "name": scenario.name,
        "verdict": scenario.verdict,
        "reason": scenario.reason,
        "needs": scenario.needs,
        "handled_by": _handled_by(scenario, symbols),
        "ways": [
            {"name": variant.name, "verdict": variant.verdict, "reason": variant.reason}
            for variant in scenario.variants
        ],
        "loop": None if told is None else _loop(told.loop),
        "trace": [] if told is None else _steps(told),
    }


def _loop(loop: Loop | None) -> dict[str, Any] | None:
    """Events that went round; `rounds` null when nothing ends it."""
    if loop is None:
        return None
    return {"vectors": list(loop.vectors), "rounds": loop.rounds, "stride": loop.stride, "eaten": loop.stack_consumed}


def _steps(told: Simulation) -> list[dict[str, Any]]:
    """Every step of a story in order."""
    rows = []
    for number, delivery in enumerate(told.deliveries):
        for attempt in delivery.attempts:
            rows += [_step(attempt.event.label, attempt.event.error_code, step) for step in attempt.steps]
        if delivery.outcome == DELIVERED and number < len(told.handlers):
            handler = told.handlers[number]
            rows += [_step(f"{label(handler.vector)} handler", None, step) for step in handler.steps]
    return rows


def trace(image: Image, event: Event, told: Iterable[tuple[Machine, Registers, Simulation]]) -> dict[str, Any]:
    """What `trace --format json` prints."""
    return {
        "schema": SCHEMA,
        "image": about(image),
        "event": {"vector": event.vector, "kind": event.kind, "error_code": hexadecimal(event.error_code)},
        "cpus": [_variant(machine, before, one, image.symbols) for machine, before, one in told],
    }


def _variant(machine: Machine, before: Registers, told: Simulation, symbols: Symbols) -> dict[str, Any]:
    return {
        "cpu": machine.cpu,
        "assumed": list(machine.assumed),
        "registers": registers(before),
        "outcome": told.outcome,
        "reason": told.reason,
        "needs": told.needs,
        "loop": _loop(told.loop),
        "trace": _steps(told),
        "deliveries": [_delivery(delivery, symbols) for delivery in told.deliveries],
    }


def _delivery(delivery: Delivery, symbols: Symbols) -> dict[str, Any]:
    """One delivery: where it ended, the handler's name, and `frame` as its fields and its bytes in memory order."""
    pushed = delivery.pushed
    frame = None
    if pushed is not None and delivery.frame is not None:
        fields = {name: value for name, value in pushed.asdict().items() if not name.startswith("reserved")}
        frame = {name: value if name in ("cs", "ss") else hexadecimal(value) for name, value in fields.items()}
        frame["raw"] = delivery.frame.hex()
    rip = delivery.registers.rip if delivery.outcome == DELIVERED else None
    lined = {"line": symbols.line(rip)} if symbols.lined and rip is not None else {}
    return {
        "outcome": delivery.outcome,
        "vector": delivery.vector,
        "name": None if rip is None else symbols.name(rip),
        **lined,
        "stack": delivery.stack,
        "cr2": hexadecimal(delivery.cr2),
        "frame": frame,
        "registers": registers(delivery.registers),
    }


def _step(event: str, code: int | None, step: Step) -> dict[str, Any]:
    return {
        "event": event,
        "error_code": hexadecimal(code),
        "step": step.step,
        "address": hexadecimal(step.address),
        "found": step.found,
        "rule": step.rule,
    }
