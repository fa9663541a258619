"""What an error code points at in an image: the gate, the descriptor or the page, and what is wrong with it."""

from __future__ import annotations

from ..checks import judge
from ..delivery.deliver import deliver
from ..delivery.events import SHUTDOWN, Event
from ..documents import hexadecimal
from ..errors import Absent, NotThere
from ..machine.paging import NX, PS, RW, US, Access, NonCanonical, P, PageFault
from ..tables import vectors
from ..tables.gdt import SegmentDescriptor
from ..tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode
from . import describe as words
from .anomalies import oddities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ..machine.image import Image
    from ..machine.machine import Machine
    from ..machine.paging import PageEntry
    from ..tables.idt import Gate
    from ..tables.legacy import LegacyGate

DIRTY, ACCESSED, GLOBAL = 1 << 6, 1 << 5, 1 << 8
VECTORS = range(256)
REAL = "the CPU is in real mode, which has no gates and no error codes: this code is another mode's, or CPU's"


def selector_error(image: Image, machines: Iterable[Machine], code: SelectorErrorCode) -> list[dict[str, Any]]:
    """For each CPU the entry that a selector error code names: its value, what is wrong, the findings about it."""
    found = []
    for machine in machines:
        name = "idt" if code.idt else "ldt" if code.ti else "gdt"
        number = code.index
        told: dict[str, Any] = {"cpu": machine.cpu, "table": name, "index": number}
        found.append(told)
        if machine.mode == "real":
            told |= {"error": REAL, "problems": [], "findings": []}
            continue
        try:
            told |= _gate(image, machine, code) if code.idt else _descriptor(image, machine, name, number)
        except NotThere as error:
            told |= {"error": str(error), "problems": [], "findings": []}
        if not code.idt:
            told["problems"] += _no_code_segment(machine, code)
        if code.idt and number and not number % 2 and number // 2 in VECTORS:
            told["or"] = f"in a log of QEMU 7.2 or older, which write vector*16+2: vector {number // 2:#x}"
    return found


def _gate(image: Image, machine: Machine, code: SelectorErrorCode) -> dict[str, Any]:
    vector = code.index
    if vector not in VECTORS:
        raise NotThere(f"no IDT has a gate {vector}: vectors end at 255, so no CPU pushes this code")
    gates = machine.gates
    table = machine.table("idt")
    if vector >= len(gates) or table is None:
        limit = table.limit if table is not None else 0
        raise NotThere(f"the IDT has no gate {vector}: its limit {limit:#x} covers {len(gates)}")
    gate = gates[vector]
    at = vector * gate.size
    if not table.known(at, at + gate.size):
        raise NotThere(f"gate {vector} cannot be read: {next(hole.why for hole in table.gaps if hole.stop > at)}")
    problems = list(oddities(gate))
    if not any(bytes(gate)):
        problems.append("there is no gate: all its bytes are zero")
    elif not gate.p:
        problems.append("not present: #NP")
    if gate.p and gate.dpl < 3 and not code.ext and (vector >= 32 or vector in (3, 4)):
        problems.append(f"DPL {gate.dpl}: INT {vector:#x} in ring 3 is refused with this code (EXT=0: an INT)")
    problems += _delivered(machine, vector)
    return {
        "address": hexadecimal(table.base + at),
        "raw": bytes(gate).hex(),
        "meaning": words.meaning(gate),
        "handler": image.symbols.name(gate.offset) if gate.p else None,
        "line": image.symbols.line(gate.offset) if gate.p else None,
        "problems": problems,
        "findings": _findings(image, machine, "idt", vector),
    }


def _delivered(machine: Machine, vector: int) -> Iterator[str]:
    """What stops the delivery of the vector on this machine as it is, with the steps of the manual."""
    if not machine.long_mode:
        return
    exception = vector < 32 and vector != 2
    told = deliver(machine, Event.exception(vector, 0) if exception else Event.interrupt(vector))
    first = told.attempts[0]
    if first.fault is not None:
        step = first.steps[-1]
        where = "" if step.address is None else f" at {step.address:#x}"
        end = ", and so on to shutdown" if told.outcome == SHUTDOWN else ""
        yield f"delivered now, it fails: {step.step}{where}: {step.found}: {step.rule}{end}"
    elif told.needs is not None and len(told.attempts) == 1:
        yield f"whether it can be delivered is not known: {told.needs}"


def _descriptor(image: Image, machine: Machine, name: str, index: int) -> dict[str, Any]:
    selector = int(Selector(index=index, ti=name == "ldt"))
    if not selector:
        raise NotThere("no descriptor: the code is 0 but for EXT, a null selector or a fault about something else")
    gdt = machine.ldt if name == "ldt" else machine.gdt
    table = machine.table(name)
    assert table is not None
    if index * 8 + 7 > table.limit:
        raise NotThere(f"selector {selector:#x} is beyond the limit of the {name.upper()}, {table.limit:#x}")
    if not table.known(index * 8, index * 8 + 8):
        raise NotThere(f"slot {index} of the {name.upper()} cannot be read")
    entry = next(e for e in gdt.entries(wide=machine.wide) if 0 <= index - e.index < len(e.raw) // 8)
    problems = list(oddities(entry.descriptor))
    if entry.index != index:
        problems.insert(0, f"slot {index} is the upper half of the {entry.kind} descriptor at {entry.selector:#x}")
    elif not any(entry.raw):
        problems.append("empty: loading it raises #GP")
    elif not entry.descriptor.p:
        problems.append("not present: #NP, or #SS for a stack segment")
    if entry.truncated:
        problems.append("its second half is beyond the limit")
    return {
        "selector": selector,
        "address": hexadecimal(table.base + entry.index * 8),
        "raw": entry.raw.hex(),
        "meaning": words.meaning(entry.descriptor) if any(entry.raw) else "empty",
        "used_by": list(_users(machine, selector)),
        "problems": problems,
        "findings": _findings(image, machine, name, index),
    }


def _users(machine: Machine, selector: int) -> Iterator[str]:
    """Who names a selector: segment registers, and gates."""
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr"):
        segment = getattr(machine.registers, name)
        if segment is not None and segment.selector & ~3 == selector:
            yield name.upper()
    gates = [vector for vector, _ in _gates(machine, selector)]
    if gates:
        yield _named(gates)


def _gates(machine: Machine, selector: int) -> list[tuple[int, Gate | LegacyGate]]:
    """The gates that name a selector, present ones, by vector."""
    try:
        return [(v, gate) for v, gate in enumerate(machine.gates) if gate.p and gate.selector & ~3 == selector]
    except NotThere:
        return []


def _named(gates: list[int]) -> str:
    return f"gates {gates[0]}..{gates[-1]}" if len(gates) > 4 else f"gate {', '.join(map(str, gates))}"


def _no_code_segment(machine: Machine, code: SelectorErrorCode) -> Iterator[str]:
    """The gates that lead to this selector as their code segment, when it is none: they raise this very code."""
    table, at = machine.table("ldt" if code.ti else "gdt"), code.index * 8
    within = table is not None and at + 7 <= table.limit
    if not machine.long_mode or table is None or (within and not table.known(at, at + 8)):
        return
    gates = [v for v, gate in _gates(machine, code.index * 8 + code.ti * 4) if gate.kind in ("interrupt", "trap")]
    segment = SegmentDescriptor.parse(table.data[at : at + 8] if within else bytes(8))
    # in the order of the manual: what is no code, then what is not present (#NP), then what is no 64-bit code
    wrong = not segment.s or not segment.code or (segment.p and (not segment.l or segment.d_b))
    if gates and wrong:
        yield f"no 64-bit code segment, yet that of {_named(gates)}: a delivery there raises #GP({int(code):#x})"


def _findings(image: Image, machine: Machine, table: str, index: int) -> list[dict[str, Any]]:
    """What the rules say of this entry."""
    if not machine.long_mode:
        return []
    (report,) = judge(image, [machine])
    return [
        {"where": f.where, "message": f.message, "severity": f.severity, "rule": f.rule}
        for f in report.findings
        if f.table == table and index in f.entries
    ]


def page_fault(machines: Iterable[Machine], code: PageFaultErrorCode, address: int) -> list[dict[str, Any]]:
    """For each CPU the walk to an address, and whether the access that the code tells of faults there in this way."""
    access = Access(write=code.wr, user=code.us, fetch=code.id)
    found: list[dict[str, Any]] = []
    for machine in machines:
        if machine.mode == "real":
            found.append({"cpu": machine.cpu, "address": hexadecimal(address), "error": REAL, "problems": []})
            continue
        entries: list[PageEntry] = []
        problems: list[str] = []
        try:
            page = machine.space.walk(address, entries.append)
            rights = [word for word, true in (("writable", page.writable), ("user", page.user)) if true]
            rights += ["executable"] if page.executable else []
            physical = page.physical + address - page.linear
            result = f"mapped to {physical:#x}, a page of {words.size(page.size)}: {', '.join(rights) or 'read-only'}"
        except PageFault as fault:
            result = fault.why
        except (Absent, NonCanonical) as error:
            result = str(error)
        else:
            problems = ["this access does not fault here: the tables changed since, or the TLB had an older entry"]
        try:
            machine.translate(address, access)
        except PageFault as fault:
            same = fault.error_code == int(code)
            how = "in the same way" if same else f"with another code, {fault.error_code:#x}"
            problems = [f"faults here {how}: {fault.why}"]
        except (Absent, NonCanonical):
            pass
        found.append(
            {
                "cpu": machine.cpu,
                "address": hexadecimal(address),
                "walk": [
                    {"name": e.name, "address": hexadecimal(e.address), "value": hexadecimal(e.value), "bits": _bits(e)}
                    for e in entries
                ],
                "result": result,
                "problems": problems,
            }
        )
    return found


def _bits(entry: PageEntry) -> str:
    """`P W U A D`, the permissions and marks of a paging-structure entry."""
    if not entry.value & P:
        return "not present"
    names = ((P, "P"), (RW, "W"), (US, "U"), (ACCESSED, "A"), (DIRTY, "D"), (GLOBAL, "G"), (NX, "NX"))
    shown = [name for bit, name in names if entry.value & bit]
    return " ".join(shown + (["PS"] if entry.value & PS and entry.name in ("PDPTE", "PDE") else []))


def text(found: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The lines for people; CPUs that have the same are told once."""
    groups: list[tuple[list[int], dict[str, Any]]] = []
    for one in found:
        rest = {key: value for key, value in one.items() if key != "cpu"}
        same = next((cpus for cpus, other in groups if other == rest), None)
        if same is None:
            groups.append(([one["cpu"]], rest))
        else:
            same.append(one["cpu"])
    for cpus, one in groups:
        yield ""
        yield from _variant(", ".join(map(str, cpus)), one)


def _variant(cpus: str, one: dict[str, Any]) -> Iterator[str]:
    cpu = f"CPU {cpus}"
    if "walk" in one:
        yield f"{cpu}  {one['address']}: {one['result']}"
        for entry in one["walk"]:
            yield f"  {entry['name']:<6} at {entry['address']:<12} {entry['value']:>18}  {entry['bits']}"
    elif "error" in one:
        yield from _wrapped(f"{cpu}  ", one["error"])
    else:
        place = _place(one)
        yield f"{cpu}  {place} at {one['address']}: {one['raw']}"
        line = one["line"].rpartition("/")[2] if one.get("line") else None
        name = " at ".join(filter(None, (one.get("handler"), line)))
        yield from _wrapped("  meaning  ", one["meaning"] + (f" <{name}>" if name else ""))
        if one.get("used_by"):
            yield from _wrapped("  used by  ", ", ".join(one["used_by"]))
    for problem in one["problems"] or ([] if "error" in one or one.get("findings") else ["nothing"]):
        yield from _wrapped("  wrong    " if "walk" not in one else "  ", problem)
    for finding in one.get("findings", ()):
        yield from _wrapped("  rule     ", f"{finding['rule']} {finding['severity']}: {finding['message']}")
    if "or" in one:
        yield from _wrapped("  or       ", one["or"])


def _place(one: dict[str, Any]) -> str:
    if one["table"] == "idt":
        label = vectors.label(one["index"])
        return f"gate {one['index']}" + (f" ({label})" if label != str(one["index"]) else "")
    return f"{one['table'].upper()} slot {one['index']} (selector {one['selector']:#x})"


def _wrapped(head: str, text: str) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(text, 98, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
