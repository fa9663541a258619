"""The 64-bit gate, and the table of up to 256 of them: the IDT."""

from __future__ import annotations

from ..errors import NotThere, UsageError
from . import vectors
from .layout import Layout, bits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from .layout import Buffer
    from .selector import Selector

INTERRUPT, TRAP = 0xE, 0xF


class Gate(Layout, size=16, cite="SDM Vol. 3A, figure '64-Bit IDT Gate Descriptors'"):
    """IDT entry of 64-bit mode: where the handler is, and on which stack it runs.

    `ist` is 1..7 as the manual counts (0 = no switch). `dpl` is who may reach the gate by INT n; it does not matter
    for exceptions and hardware interrupts.
    """

    reserved1: int = bits[127:96]
    offset: int = bits[95:48, 15:0]
    p: bool = bits[47]
    dpl: int = bits[46:45]
    s: bool = bits[44]
    type: int = bits[43:40]
    reserved0: int = bits[39:35]
    ist: int = bits[34:32]
    selector: int = bits[31:16]

    @classmethod
    def interrupt(cls, handler: int, selector: int | Selector, *, ist: int = 0, dpl: int = 0) -> Self:
        """A gate that enters `selector:handler` with interrupts off (IF=0)."""
        return cls(offset=handler, selector=int(selector), ist=ist, dpl=dpl, p=True, type=INTERRUPT)

    @classmethod
    def trap(cls, handler: int, selector: int | Selector, *, ist: int = 0, dpl: int = 0) -> Self:
        """A gate that leaves interrupts as they are. Dangerous with an IST: a second entry overwrites the first."""
        return cls(offset=handler, selector=int(selector), ist=ist, dpl=dpl, p=True, type=TRAP)

    @property
    def kind(self) -> str:
        """`interrupt`, `trap`, `absent` (all zero), or `refused` for what 64-bit mode answers with #GP."""
        if not self.s and self.type in (INTERRUPT, TRAP):
            return "interrupt" if self.type == INTERRUPT else "trap"
        return "refused" if any(self) else "absent"


class Idt:
    """The gates that a limit covers, by vector number or mnemonic: `idt[8]` is `idt["#DF"]`.

    A gate is there only if the limit covers all 16 bytes of it; the CPU reads 256 at most. What is behind them is kept
    as `tail`. Mutable until `freeze()`.
    """

    def __init__(self, count: int = 256) -> None:
        if not 0 <= count <= 256:
            raise UsageError(f"count={count}: an IDT has 0..256 gates")
        self._gates: list[Gate] | tuple[Gate, ...] = [Gate()] * count if count else []
        self.tail = b""

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """The table in `data`, of any length: whatever is in it comes back from `bytes()`."""
        count = min(len(data) // Gate.size, 256)
        idt = cls(0)
        idt._gates = Gate.parse_table(data[: count * Gate.size])
        idt.tail = bytes(data[count * Gate.size :])
        return idt

    def __bytes__(self) -> bytes:
        return Gate.build_table(self._gates) + self.tail

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Idt) and list(self._gates) == list(other._gates) and self.tail == other.tail

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} gates, {sum(gate.p for gate in self._gates)} present)"

    def __len__(self) -> int:
        return len(self._gates)

    def __iter__(self) -> Iterator[Gate]:
        return iter(self._gates)

    @property
    def limit(self) -> int:
        """What LIDT takes: the size less one (-1 for a table without a byte)."""
        return len(self) * Gate.size + len(self.tail) - 1

    def freeze(self) -> Self:
        """Refuse changes from now on."""
        self._gates = tuple(self._gates)
        return self

    def __contains__(self, vector: object) -> bool:
        return isinstance(vector, int | str) and vectors.number(vector) < len(self)

    def __getitem__(self, vector: int | str) -> Gate:
        """The gate of a vector; NotThere beyond the limit."""
        return self._gates[self._within(vector)]

    def __setitem__(self, vector: int | str, gate: Gate) -> None:
        if not isinstance(self._gates, list):
            raise UsageError("this table belongs to a Machine and is frozen: change a copy of it")
        self._gates[self._within(vector)] = gate

    def _within(self, vector: int | str) -> int:
        number = vectors.number(vector)
        if number >= len(self):
            raise NotThere(f"vector {number}: the limit {self.limit:#x} covers {len(self)} gates")
        return number
