"""What is said of a machine that stopped by itself: where its CPUs are, and what `check` answers first."""

from __future__ import annotations

from . import verdict
from .lines import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..assessment import Assessment
    from ..machine.machine import Machine
    from ..machine.symbols import Symbols

WHY = {
    "shutdown": "it shut down, or was reset: a triple fault, or the guest asked for it",
    "internal-error": "an internal error: KVM could not go on",
    "guest-panicked": "the guest has panicked",
}


def text(path: str, status: str, assessments: Sequence[Assessment], symbols: Symbols) -> Iterator[str]:
    """One screen: why QEMU stopped, then each CPU."""
    yield f"{path}: stopped ({status}): {WHY[status]}"
    for assessment in assessments:
        yield ""
        yield from wrap(f"  {_place(assessment.machine, symbols)}", "    ")
        yield from verdict.answers(assessment, symbols)


def _place(machine: Machine, symbols: Symbols) -> str:
    r = machine.registers
    parts = []
    if r.rip is not None:
        name = symbols.place(r.rip)
        parts.append(f"RIP {r.rip:#x}" + (f" <{name}>" if name else ""))
    parts += [f"{name.upper()} {r[name]:#x}" for name in ("rsp", "cr2") if r[name] is not None]
    return ", ".join(parts)
