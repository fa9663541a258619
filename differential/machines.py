"""Long-mode machines around good ones, drawn at random: what the differential tests run on both CPUs.

A case changes a few things of a good machine, chosen so that each check of delivery fails in some cases and that the
combinations are many.
"""

from __future__ import annotations

import random

from differential.mutable_machine import MutableMachine
from differential.mutations import CHANGES, operand, rsp
from x86tables.machine.machine import Machine
from x86tables.machine.registers import AC, NT, NXE, RF, SMAP, SMEP, TF, WP
from x86tables.prove.stimulus import CODE, PINS, Stimulus
from x86tables.records import Record

EXCEPTIONS = (0, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19)  # that may come out of nowhere; traps are elsewhere


class Case(Record):
    """A machine, what happens to it, and the names of what was changed. `handler_stack` as in Runner.run."""

    machine: Machine
    start: Stimulus
    handler_stack: int
    changes: tuple[str, ...]


def case(seed: int, number: int) -> Case:
    """Case `number` of the series `seed`: always the same."""
    return draw(random.Random(f"{seed}:{number}"))


def draw(rng: random.Random) -> Case:
    """A case drawn with `rng`."""
    start = _start(rng)
    cpl = rng.choice((0, 0, 0, 0, 3, 3, 3, 1, 2))
    sketch = MutableMachine(rng, 5 if rng.random() < 0.15 else 4, start, cpl)
    _flags(sketch)
    if start.kind in ("push", "call", "read", "write") and rng.random() < 0.8:  # or it would not fault
        sketch.changes.append("rsp" if start.kind in ("push", "call") else "operand")
        (rsp if start.kind in ("push", "call") else operand)(sketch)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 7))):
        change = rng.choice(CHANGES)
        label = change(sketch)
        sketch.changes.append(f"{change.__name__.strip('_')}: {label}" if label else change.__name__.strip("_"))
    if start.kind == "step":
        sketch.registers["rflags"] |= TF
    stack = 0 if sketch.wild else rng.choice((0, 0, 8, 64, 128, 128, 0x1F80))
    return Case(sketch.machine(), start, stack, tuple(sketch.changes))


def _start(rng: random.Random) -> Stimulus:
    kind = rng.choice((*CODE, "push", "push", "int", "int", "int", "interrupt", "interrupt", "nmi", "nmi", "exception"))
    if kind == "int":
        return Stimulus(kind, rng.choice((0x80, 0x80, 0x20, 0x21, 255, 3, 8, 13, 14, rng.randrange(256))))
    if kind == "interrupt":
        return Stimulus(kind, rng.choice((0x20, 0x80, 255, 8, 14, 17, rng.randrange(256))))
    if kind == "exception":
        vector = rng.choice((*EXCEPTIONS, 18, 17))
        return Stimulus(kind, vector, rng.choice((0, 0, 0x18)) if vector in (8, 10, 11, 12, 13, 14, 17) else 0)
    return Stimulus(kind)


def _flags(sketch: MutableMachine) -> None:
    """The bits that change what is allowed, and those that are only carried along."""
    rng, r = sketch.rng, sketch.registers
    for bit, likely in ((SMEP, 0.3), (SMAP, 0.3)):
        if rng.random() < likely:
            r["cr4"] |= bit
    if rng.random() < 0.2:
        r["cr0"] &= ~WP
    if rng.random() < 0.03:
        r["efer"] &= ~NXE
    if sketch.start.kind not in PINS and rng.random() < 0.1:
        r["rflags"] |= RF  # Bochs clears it before the instruction, and so before a pin is looked at
    for bit, likely in ((AC, 0.2), (NT, 0.1), (1 << 10, 0.1), (3 << 12, 0.1), (0x8D5, 0.1), (1 << 21, 0.1)):
        if rng.random() < likely:
            r["rflags"] |= bit
