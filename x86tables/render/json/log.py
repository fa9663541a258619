"""What `log` prints: the chains of faults in a QEMU log."""

from __future__ import annotations

from ...documents import Answer, Document, one_of
from ...qemulog.chains import CUT, ENTERED, EXCEPTION, GUEST, INT, INTERRUPT, OTHER, OUTCOMES, SHUTDOWN
from .. import log as words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...documents import U2, U8, U16, Hex, Natural
    from ...machine.symbols import Symbols
    from ...qemulog.chains import Repetition
    from ...qemulog.entries import Delivering
    from ...qemulog.report import LogReport, ReportedChain, ReportedEvent

ORIGINS = one_of(EXCEPTION, INTERRUPT, INT, OTHER)


class LogFileJson(Document):
    """The file."""

    path: str
    lines: Natural


class FailureJson(Document):
    """Why a delivery failed.

    cause: a key for programs
    vector: of the fault that it met
    why: the sentence
    cr2: of that page fault
    """

    cause: str
    vector: U8
    why: str
    cr2: Hex | None


class LoggedPlaceJson(Document):
    """An event as the log has it.

    name: the symbol of the instruction
    line: its file:line
    """

    vector: U8
    error_code: Hex
    log_line: Natural
    cpl: U2
    cs: U16
    rip: Hex
    name: str | None
    line: str | None
    ss: U16
    rsp: Hex
    cr2: Hex | None


class LoggedEventJson(LoggedPlaceJson, origin=ORIGINS):
    """An event of a chain.

    what: what it was, as text
    gate: from the image
    failure: null: its handler was entered
    """

    origin: str
    what: str
    gate: str | None
    failure: FailureJson | None


class RepetitionJson(LoggedPlaceJson):
    """The exception that the log ends with again and again.

    stride: by which RSP moves each time
    """

    times: Natural
    stride: int


class StoryJson(Document, outcome=one_of(ENTERED, SHUTDOWN, GUEST, CUT)):
    """An event and those that replaced it.

    log_line: where it begins
    times: how many chains of the log are like this one
    rule: the rule that finds it in an image
    replayed: whether the image's memory leads through the same events
    """

    outcome: str
    log_line: Natural
    end_line: Natural
    times: Natural
    first_cause: str
    rule: str | None
    replayed: bool
    events: list[LoggedEventJson]


class CountJson(Document, origin=ORIGINS):
    """How often there was an event.

    user: in ring 3
    first: line
    last: line
    """

    vector: U8
    origin: str
    total: Natural
    user: Natural
    first: Natural
    last: Natural


class LogJson(Answer, outcome=one_of(*OUTCOMES)):
    """A log.

    more_stories: chains that were counted and not kept
    resets: blocks of registers at a reset
    """

    log: LogFileJson
    outcome: str
    stories: list[StoryJson]
    more_stories: Natural
    loop: RepetitionJson | None
    counts: list[CountJson]
    resets: Natural


def log(path: str, report: LogReport, symbols: Symbols) -> LogJson:
    """What `log --format json` prints."""
    found = report.log
    return LogJson.of(
        found,
        log=LogFileJson(path=path, lines=found.lines),
        stories=[_story(one, symbols) for one in report.chains],
        more_stories=found.others,
        loop=_loop(found.repeated, symbols),
    )


def _loop(found: Repetition | None, symbols: Symbols) -> RepetitionJson | None:
    if found is None:
        return None
    return RepetitionJson(times=found.times, stride=found.stride, **_place(found.event, symbols))


def _story(one: ReportedChain, symbols: Symbols) -> StoryJson:
    chain = one.chain
    return StoryJson.of(
        chain,
        log_line=chain.first.line,
        end_line=chain.end,
        first_cause=words.cause(one, symbols),
        rule=one.rule,
        replayed=one.replayed,
        events=[_event(event, not number, symbols) for number, event in enumerate(one.events)],
    )


def _event(one: ReportedEvent, first: bool, symbols: Symbols) -> LoggedEventJson:
    failure, why = one.attempt.failure, words.failed(one, symbols)
    return LoggedEventJson(
        origin=one.attempt.origin,
        what=words.what(one, first, symbols),
        gate=words.gate(one, symbols),
        failure=None if failure is None else FailureJson.of(failure, vector=failure.fault, why=why),
        **_place(one.attempt.event, symbols),
    )


def _place(event: Delivering, symbols: Symbols) -> dict[str, Any]:
    shown = {name: event[name] for name in ("vector", "error_code", "cpl", "cs", "rip", "ss", "rsp", "cr2")}
    return {**shown, "log_line": event.line, "name": symbols.name(event.rip), "line": symbols.line(event.rip)}
