"""Chains of events in a log, what came first in each, and how often; a log of any length in bounded memory.

The log has no CPU numbers beside its events, so an event is tied to the one before it by what both say: the same
instruction, the same stack, and the vector that `check_exception` calls old.
"""

from __future__ import annotations

from ..records import Record
from ..tables import vectors
from .diagnosis import Failure, diagnose, named_vector, place_of, pushed
from .entries import Delivering, Raised, Reset, Serviced, Shutdown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.registers import Registers
    from .entries import Entry

DF, GP, PF = (vectors.number(name) for name in ("#DF", "#GP", "#PF"))
OLD = (0, DF, *range(10, 15))
EXCEPTION, INTERRUPT, INT, OTHER = "exception", "interrupt", "int", "other"
ENTERED, SHUTDOWN, GUEST, CUT = "entered", "shutdown", "guest-shutdown", "unknown"
# The outcomes of a log, or of a chain in it; the worst first.
OUTCOMES = (
    "triple-fault", CUT, "loops", "survives", "irq-as-exception", "reset", "delivery-failed", GUEST, "nothing",
)  # fmt: skip
KINDS = 64  # so many different chains of one verdict are kept; more of the same are counted
OPEN = 8  # so many unfinished events: QEMU's CPUs write into one log
REPEATS = 16  # the same exception at the same place so often in a row is a loop
NEAR = 0x1000  # an address so close to RSP belongs to the stack

# Why a delivery failed, as far as the log tells -> the rule of the catalogue that finds it in an image.
RULES = {
    "no-idt": "IDT011", "idt-page": "IDT012", "gdt-page": "GDT001", "tss-page": "TSS008",
    "tss": "TSS006", "stack": "STK001", "refused": "IDT005",
}  # fmt: skip


class LoggedAttempt(Record):
    """One event that QEMU set out to deliver; `failure` is None when its handler was entered."""

    event: Delivering
    origin: str
    failure: Failure | None = None

    @property
    def stray(self) -> bool:
        """Whether a hardware interrupt came on the vector of an exception."""
        return self.origin == INTERRUPT and self.event.vector < 32


class Chain(Record):
    """An event and those that replaced it. `outcome`: the last one's handler was `entered`, or `shutdown`.

    `guest-shutdown` is a shutdown that QEMU did not call a triple fault: that of a guest's own guest; `unknown`: the
    log ends when the last delivery has failed. `times` counts the chains of the log that are like this one, `last` is
    where the last of them begins.
    """

    attempts: tuple[LoggedAttempt, ...]
    outcome: str
    end: int
    times: int = 1
    last: int = 0

    @property
    def first(self) -> Delivering:
        """The event that came first."""
        return self.attempts[0].event

    @property
    def overflow(self) -> bool:
        """Whether the stack ran out: a page fault of ring 0 close to RSP, whose frame found no place either."""
        event, failure = self.first, self.attempts[0].failure
        near = event.vector == PF and event.cr2 is not None and abs(event.rsp - event.cr2) <= NEAR
        return near and event.cpl == 0 and failure is not None and failure.cause == "same-stack"

    @property
    def deliberate(self) -> bool:
        """Whether this is a reset on purpose: an INT after an empty IDT was loaded, as SeaBIOS and kernels do."""
        first, failure = self.attempts[0], self.attempts[0].failure
        if self.outcome != SHUTDOWN or first.origin != INT or failure is None or failure.cause != "no-idt":
            return False
        registers = first.event.registers
        return registers is not None and registers.idtr is not None and not registers.idtr.limit

    @property
    def verdict(self) -> str:
        """The outcome of the log if this were all of it: one of OUTCOMES."""
        end = self.attempts[-1]
        if self.outcome == SHUTDOWN:
            return "reset" if self.deliberate else "triple-fault"
        if self.outcome != ENTERED:
            return self.outcome
        if end.event.vector == DF and end.origin == EXCEPTION:
            return "survives"
        return "irq-as-exception" if end.stray else "delivery-failed"

    @property
    def rule(self) -> str | None:
        """The rule that finds in an image what decided here; None where no rule is about that."""
        if self.deliberate:
            return None
        failed = [attempt for attempt in self.attempts if attempt.failure is not None]
        if not failed:
            return "IDT017" if self.attempts[-1].stray else None
        if any(a.failure and a.failure.cause == "no-idt" for a in failed):
            return RULES["no-idt"]
        deciding, vector = failed[-1].failure, failed[-1].event.vector
        assert deciding is not None
        if vector == DF and deciding.cause in ("same-stack", "page"):
            # without CR2: where one frame found no place on the stack in use, the next one does not either
            return "IDT004" if deciding.cause == "same-stack" or len(failed) > 1 else "STK001"
        if deciding.cause in ("gate", "gate-absent"):
            return "IDT001" if vector == DF else "IDT002" if vector in (GP, PF) else None
        if deciding.cause == "idt-limit":
            return "IDT011" if vector in (DF, GP, PF) else None
        return RULES.get(deciding.cause)

    @property
    def variant(self) -> tuple[object, ...]:
        """What chains have in common that went the same way, wherever they began."""
        return (self.verdict, *((a.event.vector, a.origin, a.failure and a.failure.cause) for a in self.attempts))

    @property
    def kind(self) -> tuple[object, ...]:
        """What chains that are alike have in common: the instruction too, but an interrupt comes at any."""
        return (self.variant, None if self.attempts[0].origin == INTERRUPT else self.first.rip)


class Count(Record):
    """Events of one vector and origin: how many, how many of them in ring 3, the lines of the first and the last."""

    vector: int
    origin: str
    total: int
    user: int
    first: int
    last: int


class Repetition(Record):
    """One exception again and again at the same instruction; RSP moves by `stride` each time (0: it does not)."""

    event: Delivering
    times: int
    stride: int


class Log(Record):
    """All that is kept of a log: the notable chains, the counts, the last exception, and the loop that it ends in."""

    lines: int
    chains: tuple[Chain, ...]
    others: int
    counts: tuple[Count, ...]
    resets: int
    last: LoggedAttempt | None
    repeated: Repetition | None

    @property
    def outcome(self) -> str:
        """The worst of it, in the order of OUTCOMES.

        `triple-fault`, `unknown` (the log ends before that is decided), `loops`, `survives` (a #DF handler was
        entered), `irq-as-exception`, `reset` (on purpose), `delivery-failed` (the handler of another exception was
        entered in the place of an event), `guest-shutdown`, or `nothing`.
        """
        found = {chain.verdict for chain in self.chains} | ({"loops"} if self.repeated is not None else set())
        return next((outcome for outcome in OUTCOMES if outcome in found), "nothing")


def read_log(entries: Iterable[Entry]) -> Log:
    """Read all entries of a log, in bounded memory."""
    reader = Reader()
    for entry in entries:
        reader.take(entry)
    return reader.log()


class Reader:
    """Takes entries one by one and keeps what matters."""

    def __init__(self) -> None:
        self.raised: list[Raised] = []
        self.serviced: int | None = None
        self.open: list[list[LoggedAttempt]] = []  # chains whose last attempt may still fail, the latest last
        self.dying: list[LoggedAttempt] | None = None  # a chain that met a fault while #DF was delivered
        self.dead: Chain | None = None  # one that shut down, until the registers of the reset are seen
        self.chains: dict[tuple[object, ...], Chain] = {}
        self.kept: dict[str, int] = {}  # how many of them have each verdict
        self.others = 0
        self.counts: dict[tuple[int, str], Count] = {}
        self.resets = 0
        self.lines = 0
        self.last: LoggedAttempt | None = None
        self.repeated: Repetition | None = None

    def take(self, entry: Entry) -> None:
        """The next entry."""
        if self.dead is not None and not isinstance(entry, Shutdown):
            self._bury(entry.registers if isinstance(entry, Reset) else None)
        if isinstance(entry, Raised):
            self._raise(entry)
        elif isinstance(entry, Serviced):
            self.serviced = entry.vector
        elif isinstance(entry, Delivering):
            self._deliver(entry)
        elif isinstance(entry, Shutdown):
            self._shut_down(entry.line, SHUTDOWN)
        elif isinstance(entry, Reset):
            self.resets += 1
        else:
            self.lines = entry.line

    def _raise(self, entry: Raised) -> None:
        if self.dying is not None:
            self._shut_down(entry.line, GUEST)
        self.raised = [*self.raised[1 - OPEN :], entry]
        if entry.old == DF:
            self.dying = self._broken(entry)
            self.raised.pop()

    def _broken(self, raised: Raised) -> list[LoggedAttempt] | None:
        """The chain that this fault met in the delivery of its last event, which is no longer open; None without."""
        chain = next((c for c in reversed(self.open) if c[-1].event.vector == raised.old), None)
        if chain is None:
            return None
        self.open.remove(chain)
        return [*chain[:-1], _failed(chain[-1], raised.new, None)]

    def _shut_down(self, line: int, outcome: str) -> None:
        if self.dying is not None:
            self.dead, self.dying = Chain(tuple(self.dying), outcome, line), None

    def _bury(self, after: Registers | None) -> None:
        """Note a shutdown; the registers of a reset tell the address of the last page fault."""
        chain, self.dead = self.dead, None
        assert chain is not None
        end = chain.attempts[-1]
        # a CPU that stood elsewhere is another one, or this one at power-on
        same = after is not None and after.rip == end.event.rip
        if same and after is not None and end.failure is not None and end.failure.fault == PF:
            chain = chain.replace(attempts=(*chain.attempts[:-1], _failed(end, PF, after.cr2)))
        self._keep(chain)

    def _deliver(self, event: Delivering) -> None:
        if self.dying is not None:
            self._shut_down(event.line, GUEST)
        raised = self._cause(event)
        if event.software:
            origin = INT
        elif raised is not None:
            origin = EXCEPTION
        else:
            origin = INTERRUPT if self.serviced == event.vector else OTHER
        self.serviced = None
        attempt = LoggedAttempt(event, origin)
        before = self._interrupted(event, raised)
        if before is not None:
            self.open.remove(before)
            fault = raised.new if raised is not None else event.vector
            cr2 = _cr2(event) if fault == PF else None
            chain = [*before[:-1], _failed(before[-1], fault, cr2, event), attempt]
        else:
            chain = [attempt]
        self.open.append(chain)
        if len(self.open) > OPEN:
            self._entered(self.open.pop(0))
        self._count(attempt)

    def _cause(self, event: Delivering) -> Raised | None:
        """The `check_exception` line that led to this event."""
        for raised in reversed(self.raised):
            if raised.new == event.vector or (event.vector == DF and raised.old is not None):
                self.raised.remove(raised)
                return raised
        return None

    def _interrupted(self, event: Delivering, raised: Raised | None) -> list[LoggedAttempt] | None:
        """The chain whose last delivery this event cut short; None when it stands at a beginning."""
        if raised is None:
            return None
        for chain in reversed(self.open):
            before = chain[-1].event
            if (before.cs, before.rip, before.ss, before.rsp) != (event.cs, event.rip, event.ss, event.rsp):
                continue
            if raised.old is not None:
                if before.vector == raised.old:
                    return chain
            # QEMU calls only contributory exceptions, page and double faults old: else the fault itself has to tell
            elif (chain[-1].origin != EXCEPTION or before.vector not in OLD) and _about(event, before):
                return chain
        return None

    def _entered(self, chain: list[LoggedAttempt]) -> None:
        """No fault came: the handler of the last event runs."""
        end = chain[-1]
        if len(chain) > 1 or end.stray or (end.event.vector == DF and end.origin == EXCEPTION):
            self._keep(Chain(tuple(chain), ENTERED, end.event.line))

    def _keep(self, chain: Chain) -> None:
        known = self.chains.get(chain.kind)
        if known is not None:
            self.chains[chain.kind] = known.replace(times=known.times + 1, last=chain.first.line)
        elif (kept := self.kept.get(chain.verdict, 0)) < KINDS:  # many of one verdict shall not hide a worse one
            self.kept[chain.verdict] = kept + 1
            self.chains[chain.kind] = chain.replace(last=chain.first.line)
        else:
            self.others += 1

    def _count(self, attempt: LoggedAttempt) -> None:
        event, key = attempt.event, (attempt.event.vector, attempt.origin)
        one = self.counts.get(key) or Count(*key, 0, 0, event.line, event.line)
        self.counts[key] = one.replace(total=one.total + 1, user=one.user + (event.cpl == 3), last=event.line)
        if attempt.origin != EXCEPTION:
            return
        previous, self.last = self.last, attempt
        if previous is not None and _alike(previous.event, event):
            stride = event.rsp - previous.event.rsp
            if self.repeated is not None and self.repeated.stride == stride:
                self.repeated = self.repeated.replace(times=self.repeated.times + 1)
                return
            self.repeated = Repetition(previous.event, 2, stride)
        else:
            self.repeated = None

    def log(self) -> Log:
        """What has been read so far."""
        if self.dying is not None:  # -d cpu_reset, which shows at power-on, has a line for the end; -d int has none
            self._shut_down(self.lines, CUT if self.resets else SHUTDOWN)
        elif self.raised and self.raised[-1].line == self.lines and self.raised[-1].old is not None:
            self.dying = self._broken(self.raised[-1])
            self._shut_down(self.lines, CUT)
        if self.dead is not None:
            self._bury(None)
        while self.open:
            self._entered(self.open.pop(0))
        chains = sorted(self.chains.values(), key=lambda chain: chain.first.line)
        counts = sorted(self.counts.values(), key=lambda count: (count.vector, count.origin))
        going = self.repeated if self.repeated is not None and self.repeated.times >= REPEATS else None
        return Log(self.lines, tuple(chains), self.others, tuple(counts), self.resets, self.last, going)


def _alike(one: Delivering, other: Delivering) -> bool:
    """Whether an exception is the one before it over again, deeper in the stack perhaps."""
    place = (one.vector, one.cs, one.rip, one.error_code) == (other.vector, other.cs, other.rip, other.error_code)
    return place and (one.cr2 == other.cr2 or one.rsp != other.rsp)


def _about(event: Delivering, before: Delivering) -> bool:
    """Whether an exception speaks of the delivery of `before`: its gate, its tables or its frame."""
    if event.vector == PF:
        cr2, registers = event.cr2 or 0, event.registers
        return place_of(cr2, registers) is not None or (before.cpl == 0 and pushed(cr2, before.rsp))
    return named_vector(event.error_code, [before.vector]) is not None


def _cr2(event: Delivering) -> int | None:
    """CR2 as it was when this event came."""
    if event.cr2 is not None:
        return event.cr2
    registers = event.registers
    return None if registers is None else registers.cr2


def _failed(attempt: LoggedAttempt, fault: int, cr2: int | None, following: Delivering | None = None) -> LoggedAttempt:
    code = following.error_code if following is not None and following.vector == fault != DF else None
    return attempt.replace(failure=diagnose(attempt.event, fault, cr2, code))
