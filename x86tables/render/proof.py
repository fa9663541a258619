"""Proofs on a foreign CPU: as text, and as plain values for JSON."""

from __future__ import annotations

from .data import SCHEMA, about, hexadecimal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from ..machine.image import Image
    from ..machine.machine import Machine
    from ..machine.symbols import Symbols
    from ..prove.event_log import Observation
    from ..prove.run import Proof, TrialResult


def text(image: Image, proofs: Sequence[Proof], cpu: str, events: bool) -> Iterator[str]:
    """The lines that `prove` prints; with `events` those of every variant, else only of one that has the verdict."""
    yield f"{image.path}: {image.format}, on {cpu}"
    for one in proofs:
        yield ""
        agree = "as predicted" if one.agrees else f"NOT AS PREDICTED ({one.predicted})"
        yield f"CPU {one.machine.cpu}  {one.verdict}, {agree}"
        for reason in one.reasons:
            yield f"  {reason}"
        for name, results in one.scenarios.items():
            ran = [result for result in results if not result.trial.why]
            same = sum(result.agrees for result in ran)
            yield f"  {name}: {same} of {len(ran)} variants agree event by event"
            shown = events
            for result in ran:
                if events or not result.agrees or (not shown and result.verdict == one.verdict):
                    shown = True
                    yield from _variant_lines(result, image.symbols)
            for result in results:
                if result.trial.why:
                    yield f"    not run: {result.trial.name}: {result.trial.why}"


def _variant_lines(result: TrialResult, symbols: Symbols) -> Iterator[str]:
    yield f"    {result.trial.name}: {result.verdict}"
    observations = () if result.event_log is None else result.event_log.observations
    for one in observations[:12]:
        name = symbols.name(one.rip) if one.rip is not None else ""
        yield f"      {one}{f' ({name})' if name else ''}"
    if len(observations) > 12:
        yield f"      ... {len(observations) - 12} more"
    if result.deviations:
        yield f"      differs by what docs/deviations.md calls {', '.join(result.deviations)}: {result.differs}"
    elif result.differs:
        yield f"      differs: {result.differs}"


def data(image: Image, proofs: Sequence[Proof], cpu: str) -> dict[str, Any]:
    """What `prove --format json` prints."""
    return {
        "schema": SCHEMA,
        "image": about(image),
        "on": cpu,
        "cpus": [_cpu(one) for one in proofs],
    }


def _cpu(one: Proof) -> dict[str, Any]:
    machine: Machine = one.machine
    return {
        "cpu": machine.cpu,
        "verdict": one.verdict,
        "predicted": one.predicted,
        "agrees": one.agrees,
        "assumed": list(machine.assumed),
        "reasons": list(one.reasons),
        "scenarios": [
            {"name": name, "ways": [_variant_data(result) for result in results]}
            for name, results in one.scenarios.items()
        ],
    }


def _variant_data(result: TrialResult) -> dict[str, Any]:
    return {
        "name": result.trial.name,
        "predicted": result.trial.predicted,
        "verdict": result.verdict,
        "agrees": result.agrees,
        "not_run": result.trial.why or None,
        "differs": result.differs or None,
        "habits": list(result.deviations),
        "events": [] if result.event_log is None else [_observation(one) for one in result.event_log.observations],
    }


def _observation(one: Observation) -> dict[str, Any]:
    made: dict[str, Any] = {"what": one.what, "vector": one.vector}
    if one.what == "raised":
        made |= {"error_code": one.error_code, "cr2": hexadecimal(one.cr2)}
    if one.what == "entered":
        made |= {name: hexadecimal(one[name]) for name in ("cr2", "rip", "rsp", "rflags")}
        made |= {"cs": one.cs, "ss": one.ss, "frame": None if one.frame is None else one.frame.hex()}
    return made
