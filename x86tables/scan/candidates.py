"""The candidates of a whole image, and what each would be as a table: an IDT with its handlers, a GDT with its TSS."""

from __future__ import annotations

from collections import Counter

from .. import budgets
from ..machine.memory import PAGE
from ..machine.paging import canonical
from ..machine.probe import Absent
from ..records import Record
from ..tables.gdt import Gdt, SegmentDescriptor, SystemDescriptor
from ..tables.idt import Gate
from ..tables.tss import Tss
from .shapes import RUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..machine.memory import Memory
    from .shapes import Shapes

WINDOW = 1 << 20  # bytes looked at together: the caches of a processor hold them
_TYPED = {bytes(Gate(type=kind)) for kind in (0xE, 0xF)}
_GAP = 8  # empty slots in a row behind which no descriptor of the same GDT is expected


class Candidates(Record):
    """What looks like a table, by physical address: (address, gates) of IDTs, `run` gates in a row at least; code
    segments; pages like a root."""

    gates: list[tuple[int, int]]
    codes: list[int]
    roots: list[int]
    size: int
    run: int


def best_look() -> Callable[[bytes, int], Shapes]:
    """What finds shapes: with NumPy where it is installed, else with the standard library."""
    try:
        from .vectors import shapes as look
    except ImportError:
        from .shapes import shapes as look
    return look


def candidates(
    memory: Memory,
    look: Callable[[bytes, int], Shapes] | None = None,
    note: Callable[[int], object] | None = None,
    run: int = RUN,
) -> Candidates:
    """One pass over all that an image holds; `note` is called with the number of bytes looked at."""
    look = look or best_look()
    gates: list[tuple[int, int]] = []
    codes: list[int] = []
    roots: list[int] = []
    size = 0
    for address, data in memory.windows(WINDOW):
        size += len(data)
        found = look(data, run)
        for offset, count in found.gates:
            start = address + offset
            if gates and gates[-1][0] + gates[-1][1] * Gate.size == start:
                gates[-1] = gates[-1][0], gates[-1][1] + count
            elif len(gates) < budgets.CANDIDATES:
                gates.append((start, count))
        codes += (address + offset for offset in found.codes[: budgets.CANDIDATES - len(codes)])
        roots += (address + offset for offset in found.roots[: budgets.CANDIDATES - len(roots)])
        if note is not None:
            note(len(data))
    return Candidates(gates, codes, roots, size, run)


class IdtCandidate(Record):
    """What an IDT at `physical` would be: the gates present by vector, the selector of most, the size that fits.

    It may begin up to `before` empty slots earlier: then every vector is so much higher.
    """

    physical: int
    gates: dict[int, Gate]
    selector: int
    limit: int
    before: int = 0

    @property
    def handlers(self) -> tuple[tuple[int, int], ...]:
        """One handler of each page that most handlers are in, and how many gates lead to that page."""
        first: dict[int, int] = {}
        for gate in self.gates.values():
            first.setdefault(gate.offset >> 12, gate.offset)
        counts = Counter(gate.offset >> 12 for gate in self.gates.values())
        return tuple(sorted((first[page], count) for page, count in counts.most_common(budgets.HANDLER_PAGES)))


def idts_in(memory: Memory, start: int, count: int, least: int = RUN) -> Iterator[IdtCandidate]:
    """The IDTs that a run of gates holds: one after the other where there are more than 256 in a row. Each has `least`
    gates present."""
    for number, at in enumerate(range(start, start + count * Gate.size, 256 * Gate.size)):
        idt = _idt_at(memory, at, number == 0)
        if idt is not None and len(idt.gates) >= least:
            yield idt


def _idt_at(memory: Memory, start: int, back: bool) -> IdtCandidate | None:
    """The IDT that begins with a gate, or `back` before it, where something else fits to be gates or absent ones."""
    first = start
    while back and first - Gate.size >= start - 255 * Gate.size and _used(memory, first - Gate.size):
        first -= Gate.size
    at = start & -PAGE
    if (
        back
        and first != at
        and (first - at) % Gate.size == 0
        and first - at <= 32 * Gate.size
        and _zeros(memory, at, first - at)
    ):
        first = at  # the first gates are absent
    gates: dict[int, Gate] = {}
    end, typed = first, False
    for vector in range(256):
        at = first + vector * Gate.size
        gate = _gate(memory, at)
        if gate is not None:
            gates[vector] = gate
            end = at + Gate.size
        elif _typed(memory, at):
            typed = True
        elif not _zeros(memory, at, Gate.size):
            break
    else:
        end = first + 256 * Gate.size  # room for all of them, zero where absent
    if not gates:
        return None
    selector = Counter(gate.selector & ~3 for gate in gates.values()).most_common(1)[0][0]
    if not selector:
        return None
    before = 0
    while not typed and before < 255 - max(gates) and _zeros(memory, first - (before + 1) * Gate.size, Gate.size):
        before += 1
    return IdtCandidate(first, gates, selector, end - first - 1, before)


def _used(memory: Memory, at: int) -> bool:
    """Whether a slot has something of a gate in it."""
    return _gate(memory, at) is not None or _typed(memory, at)


def _typed(memory: Memory, at: int) -> bool:
    """Whether a slot is absent and zero but for the type, as Rust's x86_64 crate leaves those that it has not set."""
    return held(memory, at, Gate.size) == Gate.size and memory.read(at, Gate.size) in _TYPED


def _gate(memory: Memory, at: int) -> Gate | None:
    """The gate at a physical address if it is one that 64-bit mode takes, with nothing reserved set."""
    try:
        gate = Gate.parse(memory.read(at, Gate.size))
    except Absent:
        return None
    good = gate.p and gate.kind in ("interrupt", "trap") and not gate.reserved0 and not gate.reserved1
    return gate if good and canonical(gate.offset, 5) and gate.selector & ~3 and not gate.selector & 4 else None


class GdtCandidate(Record):
    """What a GDT would be: the physical address of slot 0 (where its pages follow one another), its limit, where its
    code segment is, and its TSS descriptors by selector. `loaded` counts segments marked accessed."""

    physical: int
    limit: int
    code: int
    tss: dict[int, SystemDescriptor]
    loaded: int


def gdt_at(memory: Memory, code: int, selector: int) -> GdtCandidate | None:
    """The GDT that has its code segment `selector` at `code`: of a long one, the page that holds this segment.

    It ends with the last descriptor before something else, or before many empty slots.
    """
    base = code - selector
    start = max(base, code & -PAGE | code % 8)
    try:
        data = memory.read(start, held(memory, start, PAGE))
    except Absent:
        return None
    tss: dict[int, SystemDescriptor] = {}
    end = empty = loaded = 0
    for entry in Gdt.parse(data).entries():
        at, descriptor = start + entry.index * 8, entry.descriptor
        if not descriptor.p:
            empty += 1
            if at > code and (any(entry.raw) or empty > _GAP):
                break
            continue
        if entry.kind == "refused" or entry.truncated:
            if at > code:
                break
            tss, loaded = {}, 0  # neither this nor what stands before it is of the GDT
            continue
        if isinstance(descriptor, SystemDescriptor) and descriptor.kind.startswith("tss"):
            if not descriptor.zero and canonical(descriptor.base, 5) and descriptor.effective_limit >= Tss.size - 1:
                tss[at - base] = descriptor
        elif isinstance(descriptor, SegmentDescriptor):
            loaded += descriptor.accessed
        empty, end = 0, at + len(entry.raw)
    if start > base:  # of several pages, which are whole
        end = (end + PAGE - 1) & -PAGE
    return GdtCandidate(base, end - base - 1, code, tss, loaded) if end > code else None


def _zeros(memory: Memory, start: int, size: int) -> bool:
    """Whether these bytes are held, and all zero."""
    return held(memory, start, size) == size and not any(memory.read(start, size))


def held(memory: Memory, start: int, size: int) -> int:
    """How many of `size` bytes from `start` on are held without a gap."""
    end = start
    for part in memory.parts(start, start + size):
        if part.start != end:
            break
        end = part.stop
    return end - start


def plausible_tss(data: bytes) -> bool:
    """Whether the fixed part of a TSS has its reserved fields clear, and names a stack at all."""
    tss = Tss.parse(data)
    return not (tss.reserved0 | tss.reserved1 | tss.reserved2 | tss.reserved3) and any((tss.rsp0, *tss.ist))
