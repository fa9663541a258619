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
    from ..prove.run import Proof, Proved


def text(image: Image, proved: Sequence[Proved], cpu: str, events: bool) -> Iterator[str]:
    """The lines that `prove` prints; with `events` those of every way, else only of one that tells the verdict."""
    yield f"{image.path}: {image.format}, on {cpu}"
    for one in proved:
        yield ""
        agree = "as predicted" if one.agrees else f"NOT AS PREDICTED ({one.predicted})"
        yield f"CPU {one.machine.cpu}  {one.verdict}, {agree}"
        for reason in one.reasons:
            yield f"  {reason}"
        for name, proofs in one.scenarios.items():
            ran = [proof for proof in proofs if not proof.trial.why]
            same = sum(proof.agrees for proof in ran)
            yield f"  {name}: {same} of {len(ran)} ways go the same event by event"
            told = events
            for proof in ran:
                if events or not proof.agrees or (not told and proof.verdict == one.verdict):
                    told = True
                    yield from _variant_lines(proof, image.symbols)
            for proof in proofs:
                if proof.trial.why:
                    yield f"    not run: {proof.trial.name}: {proof.trial.why}"


def _variant_lines(proof: Proof, symbols: Symbols) -> Iterator[str]:
    yield f"    {proof.trial.name}: {proof.verdict}"
    seen = () if proof.event_log is None else proof.event_log.seen
    for one in seen[:12]:
        name = symbols.name(one.rip) if one.rip is not None else ""
        yield f"      {one}{f' ({name})' if name else ''}"
    if len(seen) > 12:
        yield f"      ... {len(seen) - 12} more"
    if proof.deviations:
        yield f"      differs by what docs/deviations.md calls {', '.join(proof.deviations)}: {proof.differs}"
    elif proof.differs:
        yield f"      differs: {proof.differs}"


def data(image: Image, proved: Sequence[Proved], cpu: str) -> dict[str, Any]:
    """What `prove --format json` prints."""
    return {
        "schema": SCHEMA,
        "image": about(image),
        "on": cpu,
        "cpus": [_cpu(one) for one in proved],
    }


def _cpu(one: Proved) -> dict[str, Any]:
    machine: Machine = one.machine
    return {
        "cpu": machine.cpu,
        "verdict": one.verdict,
        "predicted": one.predicted,
        "agrees": one.agrees,
        "assumed": list(machine.assumed),
        "reasons": list(one.reasons),
        "scenarios": [
            {"name": name, "ways": [_way_data(proof) for proof in proofs]} for name, proofs in one.scenarios.items()
        ],
    }


def _way_data(proof: Proof) -> dict[str, Any]:
    return {
        "name": proof.trial.name,
        "predicted": proof.trial.predicted,
        "verdict": proof.verdict,
        "agrees": proof.agrees,
        "not_run": proof.trial.why or None,
        "differs": proof.differs or None,
        "habits": list(proof.deviations),
        "events": [] if proof.event_log is None else [_seen(one) for one in proof.event_log.seen],
    }


def _seen(one: Observation) -> dict[str, Any]:
    made: dict[str, Any] = {"what": one.what, "vector": one.vector}
    if one.what == "raised":
        made |= {"error_code": one.error_code, "cr2": hexadecimal(one.cr2)}
    if one.what == "entered":
        made |= {name: hexadecimal(one[name]) for name in ("cr2", "rip", "rsp", "rflags")}
        made |= {"cs": one.cs, "ss": one.ss, "frame": None if one.frame is None else one.frame.hex()}
    return made
