"""What an error code names in an image, as text."""

from __future__ import annotations

from ..checks.error_lookup import BEYOND_LIMIT, NO_VECTOR, NULL, REAL_MODE, UNREADABLE, NamedGate, NamedPage
from ..machine.paging import ACCESSED, NX, PS, RW, US, P
from ..tables import vectors
from . import describe as words
from .anomalies import anomalies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    from ..checks.error_lookup import NamedDescriptor
    from ..machine.probe import PageEntry
    from ..machine.symbols import Symbols

    NamedEntry: TypeAlias = "NamedGate | NamedDescriptor"
    Named: TypeAlias = "NamedEntry | NamedPage"

DIRTY, GLOBAL = 1 << 6, 1 << 8


def text(found: Iterable[Named], symbols: Symbols) -> Iterator[str]:
    """The lines for people; CPUs that have the same are shown once."""
    groups: dict[Named, list[int]] = {}
    for one in found:
        groups.setdefault(one.replace(cpu=0), []).append(one.cpu)
    for one, cpus in groups.items():
        yield ""
        yield from _lines(f"CPU {', '.join(map(str, cpus))}", one, symbols)


def _lines(cpu: str, one: Named, symbols: Symbols) -> Iterator[str]:
    if one.missing is not None:
        yield from _wrapped(f"{cpu}  ", missing(one))
    elif isinstance(one, NamedPage):
        yield f"{cpu}  {one.address:#x}: {result(one)}"
        for entry in one.walk:
            yield f"  {entry.name:<6} at {entry.address:<#12x} {entry.value:>#18x}  {bits(entry)}"
    else:
        yield f"{cpu}  {_place(one)} at {one.address:#x}: {raw(one).hex()}"
        line = (handler_line(one, symbols) or "").rpartition("/")[2]
        name = " at ".join(filter(None, (handler(one, symbols), line)))
        yield from _wrapped("  meaning  ", meaning(one) + (f" <{name}>" if name else ""))
        if users := used_by(one):
            yield from _wrapped("  used by  ", ", ".join(users))
    if isinstance(one, NamedPage):
        for problem in page_problems(one) or ([] if one.missing is not None else ["nothing"]):
            yield from _wrapped("  ", problem)
        return
    for problem in problems(one) or ([] if one.missing is not None or one.findings else ["nothing"]):
        yield from _wrapped("  wrong    ", problem)
    for finding in one.findings:
        yield from _wrapped("  rule     ", f"{finding.rule} {finding.severity}: {finding.message}")
    if old := old_qemu(one):
        yield from _wrapped("  or       ", old)


def _wrapped(head: str, text: str) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(text, 98, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


# an entry of a table


def _place(one: NamedEntry) -> str:
    if isinstance(one, NamedGate):
        label = vectors.label(one.index)
        return f"gate {one.index}" + (f" ({label})" if label != str(one.index) else "")
    return f"{one.table.upper()} slot {one.index} (selector {one.selector:#x})"


def missing(one: Named) -> str:
    """Why there is no entry to show; "" when there is one."""
    why = one.missing
    if why is None:
        return ""
    if why.kind == REAL_MODE or isinstance(one, NamedPage):
        return "the CPU is in real mode, which has neither gates nor error codes: the code is from another mode or CPU"
    if why.kind == NO_VECTOR:
        return f"no IDT has a gate {one.index}: vectors end at 255, so no CPU pushes this code"
    if why.kind == NULL:
        return "no descriptor: the code is 0 apart from EXT: a null selector, or a fault that names none"
    if why.kind == BEYOND_LIMIT and isinstance(one, NamedGate):
        return f"the IDT has no gate {one.index}: its limit {why.limit:#x} covers {why.count}"
    if why.kind == BEYOND_LIMIT and not isinstance(one, NamedGate):
        return f"selector {one.selector:#x} is beyond the limit of the {one.table.upper()}, {why.limit:#x}"
    if why.kind == UNREADABLE and isinstance(one, NamedGate):
        return f"gate {one.index} cannot be read: {why.why}"
    if why.kind == UNREADABLE:
        return f"slot {one.index} of the {one.table.upper()} cannot be read"
    return why.why


def raw(one: NamedEntry) -> bytes:
    """The bytes of the entry."""
    if isinstance(one, NamedGate):
        return b"" if one.gate is None else bytes(one.gate)
    return b"" if one.entry is None else one.entry.raw


def meaning(one: NamedEntry) -> str:
    """What the entry is."""
    if isinstance(one, NamedGate):
        return "" if one.gate is None else words.meaning(one.gate)
    return words.meaning(one.entry.descriptor) if one.entry is not None and any(one.entry.raw) else "empty"


def handler(one: NamedEntry, symbols: Symbols) -> str | None:
    """The name of a gate's handler."""
    gate = one.gate if isinstance(one, NamedGate) else None
    return symbols.name(gate.offset) if gate is not None and gate.p else None


def handler_line(one: NamedEntry, symbols: Symbols) -> str | None:
    """The source line of a gate's handler."""
    gate = one.gate if isinstance(one, NamedGate) else None
    return symbols.line(gate.offset) if gate is not None and gate.p else None


def used_by(one: NamedEntry) -> list[str]:
    """The registers and gates that name a descriptor."""
    if isinstance(one, NamedGate):
        return []
    return [*(name.upper() for name in one.registers), *([_gates(one.gates)] if one.gates else [])]


def _gates(numbers: Sequence[int]) -> str:
    return f"gates {numbers[0]}..{numbers[-1]}" if len(numbers) > 4 else f"gate {', '.join(map(str, numbers))}"


def problems(one: NamedEntry) -> list[str]:
    """What is wrong with the entry."""
    return [*(_of_gate(one) if isinstance(one, NamedGate) else _of_descriptor(one))]


def _of_gate(one: NamedGate) -> Iterator[str]:
    gate = one.gate
    if gate is None:
        return
    yield from anomalies(gate)
    if not any(bytes(gate)):
        yield "there is no gate: all its bytes are zero"
    elif not gate.p:
        yield "not present: #NP"
    if one.refuses_int:
        yield f"DPL {gate.dpl}: INT {one.index:#x} in ring 3 is refused with this code (EXT=0: an INT)"
    if one.step is not None:
        step = one.step
        where = "" if step.address is None else f" at {step.address:#x}"
        end = ", and so on to shutdown" if one.shutdown else ""
        yield f"delivered now, it fails: {step.step}{where}: {step.found}: {step.rule}{end}"
    elif one.needs is not None:
        yield f"whether it can be delivered is not known: {one.needs}"


def _of_descriptor(one: NamedDescriptor) -> Iterator[str]:
    entry = one.entry
    if entry is not None:
        if entry.index != one.index:
            yield f"slot {one.index} is the upper half of the {entry.kind} descriptor at {entry.selector:#x}"
        yield from anomalies(entry.descriptor)
        if entry.index == one.index and not any(entry.raw):
            yield "empty: loading it raises #GP"
        elif entry.index == one.index and not entry.descriptor.p:
            yield "not present: #NP, or #SS for a stack segment"
        if entry.truncated:
            yield "its second half is beyond the limit"
    if one.code_of:
        wanted = f"not a 64-bit code segment, but used by {_gates(one.code_of)}"
        yield f"{wanted}: a delivery there raises #GP({one.code:#x})"


def old_qemu(one: NamedEntry) -> str | None:
    """What the code means in a log of an old QEMU."""
    if not isinstance(one, NamedGate) or one.halved is None:
        return None
    return f"in a log of QEMU 7.2 or older, which writes vector*16+2: vector {one.halved:#x}"


# a page


def result(one: NamedPage) -> str:
    """Where the walk leads."""
    page = one.page
    if page is None:
        return one.why
    rights = [word for word, true in (("writable", page.writable), ("user", page.user)) if true]
    rights += ["executable"] if page.executable else []
    physical = page.physical + one.address - page.linear
    return f"mapped to {physical:#x}, a page of {words.size(page.size)}: {', '.join(rights) or 'read-only'}"


def page_problems(one: NamedPage) -> list[str]:
    """Whether the access faults here as the code says."""
    if one.fault_code is not None:
        same = one.fault_code == one.code
        how = "in the same way" if same else f"with another code, {one.fault_code:#x}"
        return [f"faults here {how}: {one.fault_why}"]
    if one.unprotected:
        return ["this access does not fault here: the page is read-only, but CR0.WP=0 lets the supervisor write to it"]
    if one.page is not None:
        return ["this access does not fault here: the tables changed since, or the TLB had an older entry"]
    return []


def bits(entry: PageEntry) -> str:
    """`P W U A D`, the permissions and marks of a paging-structure entry."""
    if not entry.value & P:
        return "not present"
    names = ((P, "P"), (RW, "W"), (US, "U"), (ACCESSED, "A"), (DIRTY, "D"), (GLOBAL, "G"), (NX, "NX"))
    shown = [name for bit, name in names if entry.value & bit]
    return " ".join(shown + (["PS"] if entry.value & PS and entry.name in ("PDPTE", "PDE") else []))
