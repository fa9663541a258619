"""Verdicts and traces: as text for a tired person, and as plain values for JSON."""

from __future__ import annotations

import os
import re
import sys

from ..delivery import DELIVERED
from ..selector import PageFaultErrorCode
from ..story import HANDLER_STACK, SURVIVES, stack_name
from ..vectors import label
from .data import SCHEMA, hexadecimal, registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from ..delivery import Attempt, Delivery, Event, Step
    from ..image import Image
    from ..machine import Machine, Registers
    from ..scenarios import Judgement, Scenario
    from ..stacks import Room, StackInUse
    from ..story import Handler, Loop, Story
    from ..symbols import Symbols

COLOURS = {"survives": "32", "triple-fault": "31", "loops": "31", "unknown": "33", "error": "31", "warning": "33"}
_ADDRESS = re.compile(r"\b0x[0-9a-f]{5,16}\b")


def coloured(word: str) -> str:
    """The word, in its colour where standard output is a terminal."""
    if word in COLOURS and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[1;{COLOURS[word]}m{word}\x1b[0m"
    return word


# Text


def check(
    image: Image,
    judgements: Sequence[Judgement],
    all_steps: bool = False,
    below: Sequence[Iterable[str]] | None = None,
) -> Iterator[str]:
    """The lines that `check` prints: per CPU the two answers, why, the trace, the room on each stack, and what stands
    `below` it (findings)."""
    count = len(image.machines)
    yield f"{image.path}: {image.format}, {count} CPU{'s' if count != 1 else ''}"
    for remark in image.remarks:
        yield f"  note: {remark}"
    for judgement, lines in zip(judgements, below or [()] * len(judgements), strict=True):
        yield ""
        yield from _judgement(judgement, image.symbols, all_steps)
        yield from lines


def _judgement(judgement: Judgement, symbols: Symbols, all_steps: bool) -> Iterator[str]:
    machine, overflow = judgement.machine, judgement.overflow
    yield f"CPU {machine.cpu}  {coloured(judgement.verdict)}{_answer(judgement)}"
    yield from wrap(f"  {overflow.reason}{_handler_name(overflow, symbols)}", "  ")
    if not machine.wide:
        return
    yield from wrap(f"  stack  {_stack(judgement.stack)}", "         ")
    for remark in overflow.remarks:
        yield from wrap(f"  note   {remark}", "         ")
    if machine.assumed:
        yield from wrap(f"  assumed: {'; '.join(machine.assumed)}", "         ")
    yield from _scenario(overflow, symbols, all_steps)
    for scenario in judgement.scenarios:
        if scenario is not overflow:
            yield ""
            yield from wrap(f"  {scenario.name}: {coloured(scenario.verdict)}: {scenario.reason}", "    ")
            yield from _ways(scenario)
            if scenario.verdict != SURVIVES:
                yield from _scenario(scenario, symbols, all_steps)
    if judgement.rooms:
        yield ""
        yield f"  room on the interrupt stacks ({HANDLER_STACK} bytes prove entry, not that a panic printer fits)"
        yield from (f"    {line}" for line in map(_room, judgement.rooms))


def _answer(judgement: Judgement) -> str:
    """What follows the verdict in the first line: the answer about the stack in use."""
    stack = judgement.stack
    if not judgement.machine.wide:
        return ""
    condition = " if a guard page is hit" if judgement.verdict != "unknown" else ""
    answers = {
        "guarded": "the stack in use is guarded",
        "silent-corruption": "the stack in use has none: an overflow corrupts memory in silence",
        "unknown": "whether the stack in use is guarded is not known",
        "not-judged": "the stack in use is not judged",
    }
    return f"{condition}; {answers[stack.verdict]}"


def _handler_name(scenario: Scenario, symbols: Symbols) -> str:
    story = scenario.worst.story if scenario.worst else None
    if story is None or story.outcome != SURVIVES or story.registers.rip is None:
        return ""
    name = symbols.name(story.registers.rip)
    return f" ({name})" if name else ""


def _stack(stack: StackInUse) -> str:
    parts = []
    if stack.rsp is not None:
        parts.append(f"RSP {stack.rsp:#x}")
    if stack.guard is not None and stack.distance is not None:
        parts.append(f"{stack.distance:,} bytes above {stack.guard.top:#x}, where a guard ends ({stack.guard.kind})")
    if stack.guard is None or stack.verdict != "guarded":
        parts.append(stack.reason)
    if stack.beyond:
        parts.append(stack.beyond)
    return "; ".join(parts)


def _ways(scenario: Scenario) -> Iterator[str]:
    """Each way in a line; many like ones in one."""
    if len(scenario.ways) > 8:
        counts: dict[str, int] = {}
        for way in scenario.ways:
            counts[way.verdict] = counts.get(way.verdict, 0) + 1
        yield f"    {len(scenario.ways)} ways: " + ", ".join(f"{count} {name}" for name, count in counts.items())
        for name in counts.keys() - {SURVIVES}:
            first = next(way for way in scenario.ways if way.verdict == name)
            yield from wrap(f"      {first.name}: {first.reason}", "        ")
        return
    for way in scenario.ways:
        yield from wrap(f"    {way.name}: {coloured(way.verdict)}: {way.reason}", "      ")
        if way.story is not None and way.story.loop is not None:
            yield f"      {_loop(way.story.loop)}"


def _room(room: Room) -> str:
    names = ", ".join(label(vector) for vector in room.vectors[:4]) + (", ..." if len(room.vectors) > 4 else "")
    size = f"{room.size:,} bytes" if room.below is not None else f"at least {room.size:,} bytes"
    below = f", then {room.below}" if room.below is not None else ""
    return f"{room.name}  {room.top:#018x}  {size}{below}{f'  ({names})' if names else '  (no gate)'}"


def _scenario(scenario: Scenario, symbols: Symbols, all_steps: bool) -> Iterator[str]:
    """The trace of the way that decided."""
    worst = scenario.worst
    if worst is None or worst.story is None:
        return
    yield ""
    alike = sum(way.verdict == worst.verdict and way.reason == worst.reason for way in scenario.ways)
    rest = f" (and {alike - 1} more ways that end like it)" if alike > 1 else ""
    yield f"  {worst.name}{rest}"
    yield from story(worst.story, symbols, all_steps)


def story(told: Story, symbols: Symbols, all_steps: bool = False) -> Iterator[str]:
    """The lines of a trace: each event, what the CPU read, what it found, what that led to."""
    for number, delivery in enumerate(told.deliveries):
        if told.loop is not None and number == told.loop.at:
            yield f"    ... {_loop(told.loop)}"
        handler = told.handlers[number] if number < len(told.handlers) else None
        yield from _delivery(delivery, handler, symbols, all_steps)
    if told.loop is not None and told.loop.at >= len(told.deliveries):
        yield f"    ... {_loop(told.loop)}"
    ending = {"survives": "runs", "triple-fault": "SHUTDOWN", "loops": "goes round", "unknown": "not known"}
    yield from wrap(f"    => {ending[told.outcome]}: {told.reason}", "       ")


def trace(
    image: Image, event: Event, told: Sequence[tuple[Machine, Registers, Story]], all_steps: bool
) -> Iterator[str]:
    """The lines that `trace` prints: for each CPU where it happened, the steps, and the frame of the last delivery."""
    for number, (machine, before, one) in enumerate(told):
        if number:
            yield ""
        rip, rsp = hexadecimal(before.rip), hexadecimal(before.rsp)
        yield f"CPU {machine.cpu}  {event.label} in ring {before.cpl}, RIP {rip}, RSP {rsp}"
        yield from story(one, image.symbols, all_steps)
        last = one.deliveries[-1]
        if last.pushed is not None:
            values = {name: value for name, value in last.pushed.asdict().items() if not name.startswith("reserved")}
            shown = ", ".join(f"{name.replace('_', ' ')} {value:#x}" for name, value in reversed(values.items()))
            yield from wrap(f"    frame at {hexadecimal(last.registers.rsp)}: {shown}", "      ")
        if last.outcome == DELIVERED:
            r = last.registers
            selectors = [f"{name} {s.selector:#x}" for name, s in (("cs", r.cs), ("ss", r.ss)) if s is not None]
            rest = [f"{name} {hexadecimal(r[name])}" for name in ("rip", "rsp", "rflags", "cr2") if r[name] is not None]
            yield from wrap(f"    then {', '.join(selectors + rest)}", "      ")


def _delivery(delivery: Delivery, handler: Handler | None, symbols: Symbols, all_steps: bool) -> Iterator[str]:
    before: Attempt | None = None
    for attempt in delivery.attempts:
        cause = ""
        if before is not None and before.fault is not None:
            cause = f"   {before.fault.label} while delivering {before.event.label}"
        yield f"    {_event(attempt.event)}{cause}"
        for step in attempt.steps:
            if all_steps or _telling(step, attempt):
                yield from _step(step, symbols)
        before = attempt
    if handler is not None:
        yield f"    {label(handler.vector)} handler on {stack_name(delivery.stack)}"
        for step in handler.steps:
            yield from _step(step, symbols)


def _telling(step: Step, attempt: Attempt) -> bool:
    """Whether a person needs the step: it read or wrote something, chose the stack, or failed."""
    return step.address is not None or step.step == "stack" or (bool(attempt.fault) and step is attempt.steps[-1])


def _step(step: Step, symbols: Symbols) -> Iterator[str]:
    address = "" if step.address is None else f"{step.address:#x}"
    head = f"      {step.step:<16}{address:<19} "
    found = step.found if step.rule in ("read", "written", "can be pushed to") else f"{step.found}: {step.rule}"
    yield from wrap(head + _named(found, symbols) + _name_of(step, symbols), " " * 44)


def _name_of(step: Step, symbols: Symbols) -> str:
    """The symbol at the address that a step fetched from."""
    if step.address is None or step.step not in ("handler", "fetch"):
        return ""
    name = symbols.name(step.address)
    return f" <{name}>" if name else ""


def _named(text: str, symbols: Symbols) -> str:
    """The text with names behind the addresses that have one."""
    if not symbols:
        return text

    def name(match: re.Match[str]) -> str:
        found = symbols.name(int(match[0], 16))
        return f"{match[0]} <{found}>" if found else match[0]

    return _ADDRESS.sub(name, text)


def _event(event: Event) -> str:
    code = "" if event.error_code is None else f"({event.error_code:#x})"
    where = "" if event.cr2 is None else f", CR2 {event.cr2:#x}"
    kind = ""
    if event.vector == 14 and event.error_code is not None and event.kind == "exception":
        told = PageFaultErrorCode.from_int(event.error_code & 0xFFFF_FFFF)
        doing = "fetch" if told.id else "write" if told.wr else "read"
        kind = f" {'user' if told.us else 'supervisor'} {doing}, {'refused' if told.p else 'not present'}"
    return f"{event.label}{code}{kind}{where}"


def _loop(loop: Loop) -> str:
    events = ", ".join(label(vector) for vector in loop.vectors)
    if loop.rounds is None:
        return f"{events} again, for ever" + (f", {loop.stride} bytes deeper each time" if loop.stride else "")
    return (
        f"{events}: {loop.rounds:,} times in all, {loop.stride} bytes deeper each time, {loop.eaten:,} bytes of stack"
    )


def _width() -> int:
    """80 to 100 columns, as the terminal has them; 100 elsewhere."""
    return max(80, min(100, os.get_terminal_size().columns)) if sys.stdout.isatty() else 100


def wrap(line: str, indent: str) -> Iterator[str]:
    """The line broken at spaces so that it stays within the width."""
    width = _width()
    while len(line) > width and (cut := line.rfind(" ", len(indent) + 1, width + 1)) > len(indent):
        yield line[:cut].rstrip()
        line = indent + line[cut + 1 :]
    yield line.rstrip()


# JSON


def check_data(image: Image, judgements: Iterable[Judgement]) -> dict[str, Any]:
    """What `check --format json` prints, without findings of rules."""
    return {
        "schema": SCHEMA,
        "image": {"path": image.path, "format": image.format, "remarks": list(image.remarks)},
        "cpus": [_judgement_data(judgement, image.symbols) for judgement in judgements],
    }


def _judgement_data(judgement: Judgement, symbols: Symbols) -> dict[str, Any]:
    overflow = judgement.overflow
    return {
        "cpu": judgement.machine.cpu,
        "verdict": judgement.verdict,
        "reason": overflow.reason,
        "handled_by": _handled_by(overflow, symbols),
        "assumed": list(judgement.machine.assumed),
        "remarks": list(overflow.remarks),
        "stack": stack_data(judgement.stack),
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
        "scenarios": [scenario_data(scenario, symbols) for scenario in judgement.scenarios],
        "findings": [],
        "not_checked": [],
    }


def _handled_by(scenario: Scenario, symbols: Symbols) -> dict[str, Any] | None:
    if scenario.handled_by is None or scenario.worst is None or scenario.worst.story is None:
        return None
    vector, stack = scenario.handled_by
    rip = scenario.worst.story.registers.rip
    name = None if rip is None else symbols.name(rip)
    return {"vector": vector, "stack": stack, "handler": hexadecimal(rip), "name": name}


def stack_data(stack: StackInUse) -> dict[str, Any]:
    """The answer about the stack in use; `guard` is the address of the guard page."""
    guard = stack.guard
    return {
        "verdict": stack.verdict,
        "reason": stack.reason,
        "rsp": hexadecimal(stack.rsp),
        "guard": None if guard is None else hexadecimal((guard.top - 1) & ~0xFFF),
        "kind": None if guard is None else guard.kind,
        "distance": stack.distance,
        "beyond": stack.beyond,
    }


def scenario_data(scenario: Scenario, symbols: Symbols) -> dict[str, Any]:
    """A scenario with the trace of its worst way."""
    told = scenario.worst.story if scenario.worst is not None else None
    return {
        "name": scenario.name,
        "verdict": scenario.verdict,
        "reason": scenario.reason,
        "needs": scenario.needs,
        "handled_by": _handled_by(scenario, symbols),
        "ways": [{"name": way.name, "verdict": way.verdict, "reason": way.reason} for way in scenario.ways],
        "loop": None if told is None else loop_data(told.loop),
        "trace": [] if told is None else trace_data(told),
    }


def loop_data(loop: Loop | None) -> dict[str, Any] | None:
    """Events that went round; `rounds` null when nothing ends it."""
    if loop is None:
        return None
    return {"vectors": list(loop.vectors), "rounds": loop.rounds, "stride": loop.stride, "eaten": loop.eaten}


def trace_data(told: Story) -> list[dict[str, Any]]:
    """Every step of a story in order."""
    rows = []
    for number, delivery in enumerate(told.deliveries):
        for attempt in delivery.attempts:
            rows += [_step_data(attempt.event.label, attempt.event.error_code, step) for step in attempt.steps]
        if delivery.outcome == DELIVERED and number < len(told.handlers):
            handler = told.handlers[number]
            rows += [_step_data(f"{label(handler.vector)} handler", None, step) for step in handler.steps]
    return rows


def trace_report(image: Image, event: Event, told: Iterable[tuple[Machine, Registers, Story]]) -> dict[str, Any]:
    """What `trace --format json` prints."""
    return {
        "schema": SCHEMA,
        "image": {"path": image.path, "format": image.format, "remarks": list(image.remarks)},
        "event": {"vector": event.vector, "kind": event.kind, "error_code": hexadecimal(event.error_code)},
        "cpus": [_told_data(machine, before, one) for machine, before, one in told],
    }


def _told_data(machine: Machine, before: Registers, told: Story) -> dict[str, Any]:
    return {
        "cpu": machine.cpu,
        "assumed": list(machine.assumed),
        "registers": registers(before),
        "outcome": told.outcome,
        "reason": told.reason,
        "needs": told.needs,
        "loop": loop_data(told.loop),
        "trace": trace_data(told),
        "deliveries": [_delivery_data(delivery) for delivery in told.deliveries],
    }


def _delivery_data(delivery: Delivery) -> dict[str, Any]:
    """One delivery: where it ended, with `frame` as its fields and its bytes in memory order."""
    pushed = delivery.pushed
    frame = None
    if pushed is not None and delivery.frame is not None:
        fields = {name: value for name, value in pushed.asdict().items() if not name.startswith("reserved")}
        frame = {name: value if name in ("cs", "ss") else hexadecimal(value) for name, value in fields.items()}
        frame["raw"] = delivery.frame.hex()
    return {
        "outcome": delivery.outcome,
        "vector": delivery.vector,
        "stack": delivery.stack,
        "cr2": hexadecimal(delivery.cr2),
        "frame": frame,
        "registers": registers(delivery.registers),
    }


def _step_data(event: str, code: int | None, step: Step) -> dict[str, Any]:
    return {
        "event": event,
        "error_code": hexadecimal(code),
        "step": step.step,
        "address": hexadecimal(step.address),
        "found": step.found,
        "rule": step.rule,
    }
