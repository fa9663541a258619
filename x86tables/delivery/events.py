"""Event: what is delivered; Delivery: how it went, by attempts and steps."""

from __future__ import annotations

from ..records import Record
from ..tables import vectors
from ..tables.pseudo import ErrorFrame, Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.registers import Registers

__all__ = ["Attempt", "Delivery", "Event", "Step"]

EXCEPTION, TRAP, INT, INT1, INTERRUPT, NMI = "exception", "trap", "int", "int1", "interrupt", "nmi"
DELIVERED, SHUTDOWN, UNKNOWN = "delivered", "shutdown", "unknown"
DF, TS, NP, SS, GP, PF = (vectors.number(name) for name in ("#DF", "#TS", "#NP", "#SS", "#GP", "#PF"))


class Event(Record):
    """Something to deliver. `kind` decides about privilege checks, error codes and the saved RIP.

    `exception` is a fault or abort, saved with the instruction's own address; `trap` an exception after an instruction;
    `int` an INT n or INT3 of `length` bytes; `int1`; `interrupt` and `nmi` come from outside. `cr2` is a page fault's.
    `assumed` are bits of the error code that rest on an assumption about the machine.
    """

    vector: int
    kind: str = EXCEPTION
    error_code: int | None = None
    length: int = 0
    cr2: int | None = None
    assumed: int = 0

    @classmethod
    def exception(cls, vector: int | str, error_code: int | None = None, cr2: int | None = None) -> Event:
        """A fault or abort that the processor raises; `error_code` counts only where the vector has one (default 0)."""
        return cls(vectors.number(vector), EXCEPTION, error_code, 0, cr2)

    @classmethod
    def trap(cls, vector: int | str) -> Event:
        """An exception reported after the instruction: RIP is that of the next one already."""
        return cls(vectors.number(vector), TRAP)

    @classmethod
    def software(cls, vector: int, length: int = 2) -> Event:
        """INT n; RIP is that of the INT itself."""
        return cls(vectors.number(vector), INT, None, length)

    @classmethod
    def int3(cls) -> Event:
        """The one-byte breakpoint instruction, checked like INT n."""
        return cls(3, INT, None, 1)

    @classmethod
    def int1(cls) -> Event:
        """The one-byte INT1 (F1), which reaches its gate whatever the gate's DPL."""
        return cls(1, INT1, None, 1)

    @classmethod
    def interrupt(cls, vector: int) -> Event:
        """An external interrupt, between two instructions."""
        return cls(vectors.number(vector), INTERRUPT)

    @classmethod
    def nmi(cls) -> Event:
        """A non-maskable interrupt."""
        return cls(2, NMI)

    @property
    def label(self) -> str:
        """`#PF`, `int 0x80`, `interrupt 0x20`, `NMI`."""
        if self.kind == INT:
            return "int3" if self.vector == 3 and self.length == 1 else f"int {self.vector:#x}"
        if self.kind == INTERRUPT:
            return f"interrupt {self.vector:#x}"
        return "int1" if self.kind == INT1 else vectors.label(self.vector)


class Step(Record):
    """One check: its name, the linear address it read or wrote, what it found, and the rule that decided."""

    step: str
    address: int | None
    found: str
    rule: str


class Attempt(Record):
    """One event on its way: its steps, and the fault that ended it, as raised; None when a handler was entered."""

    event: Event
    steps: tuple[Step, ...]
    fault: Event | None = None


class Delivery(Record):
    """How the delivery of an event ended. `outcome` is `delivered`, `shutdown` or `unknown`; `reason` says why.

    When delivered: the `vector` that was entered, the `stack` it runs on (`IST1`, `RSP0`, `current`), the `frame` as
    pushed (lowest address first; None when a register in it is not known), and the registers at the handler's first
    instruction. Otherwise the registers are those at the event. When unknown, `needs` names what was wanted.
    """

    attempts: tuple[Attempt, ...]
    outcome: str
    reason: str
    registers: Registers
    cr2: int | None = None
    needs: str | None = None
    vector: int | None = None
    stack: str | None = None
    frame: bytes | None = None

    @property
    def pushed(self) -> Frame | ErrorFrame | None:
        """The frame, decoded."""
        if self.frame is None:
            return None
        return Frame.parse(self.frame) if len(self.frame) == Frame.size else ErrorFrame.parse(self.frame)

    @property
    def events(self) -> tuple[Event, ...]:
        """The events in order, the one that came first and those that replaced it."""
        return tuple(attempt.event for attempt in self.attempts)


def class_of(event: Event, vendor: str) -> str:
    """The class of an event for the double-fault decision. Interrupts of all kinds are benign, INT 8 too."""
    if event.kind not in (EXCEPTION, TRAP) or event.vector > 31:
        return vectors.BENIGN
    row = vectors.EXCEPTIONS[event.vector]
    return row.amd if vendor == "amd" else row.intel


def pushes_error_code(event: Event, vendor: str) -> bool:
    """Whether the frame has an error code: exceptions only, never INT n or an interrupt of the same number."""
    if event.kind != EXCEPTION or event.vector > 31:
        return False
    return vectors.EXCEPTIONS[event.vector].error_code and (event.vector < 28 or vendor == "amd")
