"""Long-mode machines around good ones, drawn at random: what the differential tests run on both CPUs.

A case changes a few things of a good machine, chosen so that each check of delivery fails in some cases and that the
combinations are many.
"""

from __future__ import annotations

import random

from differential.mutable_machine import MutableMachine
from differential.mutations import MUTATIONS, operand, rsp
from x86tables.machine.machine import Machine
from x86tables.machine.registers import AC, NT, NXE, RF, SMAP, SMEP, TF, WP
from x86tables.prove.stimulus import CODE, PINS, Stimulus
from x86tables.records import Record

EXCEPTIONS = (0, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19)  # that may come out of nowhere; traps are elsewhere


class Case(Record):
    """A machine, what happens to it, and the names of its mutations. `handler_stack` as in Runner.run."""

    machine: Machine
    stimulus: Stimulus
    handler_stack: int
    mutations: tuple[str, ...]


def case(seed: int, number: int) -> Case:
    """Case `number` of the series `seed`: always the same."""
    return draw(random.Random(f"{seed}:{number}"))


def draw(rng: random.Random) -> Case:
    """A case drawn with `rng`."""
    stimulus = _stimulus(rng)
    cpl = rng.choice((0, 0, 0, 0, 3, 3, 3, 1, 2))
    mutable = MutableMachine(rng, 5 if rng.random() < 0.15 else 4, stimulus, cpl)
    _flags(mutable)
    if stimulus.kind in ("push", "call", "read", "write") and rng.random() < 0.8:  # or it would not fault
        mutable.mutations.append("rsp" if stimulus.kind in ("push", "call") else "operand")
        (rsp if stimulus.kind in ("push", "call") else operand)(mutable)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 7))):
        mutation = rng.choice(MUTATIONS)
        label = mutation(mutable)
        mutable.mutations.append(f"{mutation.__name__.strip('_')}: {label}" if label else mutation.__name__.strip("_"))
    if stimulus.kind == "step":
        mutable.registers["rflags"] |= TF
    stack = 0 if mutable.wild else rng.choice((0, 0, 8, 64, 128, 128, 0x1F80))
    return Case(mutable.machine(), stimulus, stack, tuple(mutable.mutations))


def _stimulus(rng: random.Random) -> Stimulus:
    kind = rng.choice((*CODE, "push", "push", "int", "int", "int", "interrupt", "interrupt", "nmi", "nmi", "exception"))
    if kind == "int":
        return Stimulus(kind, rng.choice((0x80, 0x80, 0x20, 0x21, 255, 3, 8, 13, 14, rng.randrange(256))))
    if kind == "interrupt":
        return Stimulus(kind, rng.choice((0x20, 0x80, 255, 8, 14, 17, rng.randrange(256))))
    if kind == "exception":
        vector = rng.choice((*EXCEPTIONS, 18, 17))
        return Stimulus(kind, vector, rng.choice((0, 0, 0x18)) if vector in (8, 10, 11, 12, 13, 14, 17) else 0)
    return Stimulus(kind)


def _flags(mutable: MutableMachine) -> None:
    """The bits that change what is allowed, and those that are only carried along."""
    rng, r = mutable.rng, mutable.registers
    for bit, likely in ((SMEP, 0.3), (SMAP, 0.3)):
        if rng.random() < likely:
            r["cr4"] |= bit
    if rng.random() < 0.2:
        r["cr0"] &= ~WP
    if rng.random() < 0.03:
        r["efer"] &= ~NXE
    if mutable.stimulus.kind not in PINS and rng.random() < 0.1:
        r["rflags"] |= RF  # Bochs clears it before the instruction, and so before a pin is looked at
    for bit, likely in ((AC, 0.2), (NT, 0.1), (1 << 10, 0.1), (3 << 12, 0.1), (0x8D5, 0.1), (1 << 21, 0.1)):
        if rng.random() < likely:
            r["rflags"] |= bit
