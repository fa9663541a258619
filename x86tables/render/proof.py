"""Proofs on a foreign CPU: as text."""

from __future__ import annotations

from ..delivery.scenarios import NOT_APPLICABLE
from ..delivery.simulate import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..machine.image import Image
    from ..machine.symbols import Symbols
    from ..prove.run import Proof, TrialResult


def text(image: Image, proofs: Sequence[Proof], cpu: str, events: bool) -> Iterator[str]:
    """The lines that `prove` prints; with `events` those of every variant, else only of one that has the verdict."""
    yield f"{image.path}: {image.format}, on {cpu}"
    for one in proofs:
        yield ""
        yield f"CPU {one.machine.cpu}  {one.verdict}{_agreement(one)}"
        for reason in one.reasons:
            yield f"  {reason}"
        for name, results in one.scenarios.items():
            ran = [result for result in results if not result.trial.why]
            same = sum(result.agrees for result in ran)
            if not results:
                if one.verdict != NOT_APPLICABLE:
                    yield f"  {name}: not applicable"
            elif not ran:
                yield f"  {name}: none of {len(results)} variants can be run"
            else:
                yield f"  {name}: {same} of {len(ran)} variants agree event by event"
            shown = events
            for result in ran:
                if events or not result.agrees or (not shown and result.verdict == one.verdict):
                    shown = True
                    yield from _variant_lines(result, image.symbols)
            for result in results:
                if result.trial.why:
                    yield f"    not run: {result.trial.name}: {result.trial.why}"
        for name, why in one.not_run.items():
            yield f"  {name}: not run: {why}"


def _agreement(one: Proof) -> str:
    """What the verdict is to the prediction."""
    if one.verdict == NOT_APPLICABLE == one.predicted:
        return ""
    if one.verdict == UNKNOWN != one.predicted:
        return f" ({one.predicted} predicted)"
    return ", as predicted" if one.agrees else f", NOT AS PREDICTED ({one.predicted})"


def _variant_lines(result: TrialResult, symbols: Symbols) -> Iterator[str]:
    yield f"    {result.trial.name}: {result.verdict}"
    observations = () if result.event_log is None else result.event_log.observations
    for one in observations[:12]:
        name = symbols.name(one.rip) if one.rip is not None else ""
        yield f"      {one}{f' ({name})' if name else ''}"
    if len(observations) > 12:
        yield f"      ... {len(observations) - 12} more"
    if result.event_log is not None and result.event_log.needs:
        yield f"      needs more: {result.event_log.needs}"
    if result.deviations:
        yield f"      differs by what docs/deviations.md calls {', '.join(result.deviations)}: {result.differs}"
    elif result.differs:
        yield f"      differs: {result.differs}"
