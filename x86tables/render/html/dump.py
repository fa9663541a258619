"""Machines and their tables as a page: each entry with its meaning, and its bits that open."""

from __future__ import annotations

from ... import budgets
from ...delivery.occupants import Occupants
from ...tables.tss import STACKS, Tss
from .. import rows, text
from ..data import stacks
from ..markup import Markup, element, join
from .page import SCROLLS, about, bits, code, page, pairs, paragraph, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...machine.image import Snapshot
    from ...machine.machine import Machine, Table
    from ...tables.layout import Layout


def dump(image: Snapshot, machines: Sequence[Machine], tables: Sequence[str], everything: bool) -> Iterator[str]:
    """The pieces of the page."""
    return page(f"{image.path}: x86tables dump", _Page(image, everything).blocks(machines, tables))


class _Page:
    """One page: what is shown already, and how many diagrams it has."""

    def __init__(self, image: Snapshot, everything: bool) -> None:
        self.image, self.everything = image, everything
        self.occupants = Occupants(image.machines)
        self.diagrams = 0
        self.shown: dict[tuple[object, ...], int] = {}

    def blocks(self, machines: Sequence[Machine], tables: Sequence[str]) -> Iterator[Markup]:
        yield about(self.image)
        count = len(machines)
        yield element("h1", f"The tables of {f'{count} CPUs' if count > 1 else f'CPU {machines[0].cpu}'}")
        for machine in machines:
            yield element("h2", f"CPU {machine.cpu}: {text.where(machine, self.image)}")
            yield pairs(_registers(machine))
            for name in tables:
                if machine.mode != "real" or name not in ("tss", "ldt"):
                    yield from self._table(machine, name)

    def _table(self, machine: Machine, name: str) -> Iterator[Markup]:
        found, title = machine.table(name), rows.title(machine, name)
        if found is None:
            if why := rows.missing(machine, name):
                yield element("h3", title)
                yield paragraph(f"None: {why}")
            return
        place = f"{title}: base {found.base:#x}, limit {found.limit:#x}"
        yield element("h3", f"{place}{rows.count(machine, found)}")
        yield from (paragraph(said) for said in rows.gaps(found))
        if found.error:
            return
        if name != "tss":
            pages = None if name == "idt" or self.everything else rows.named_pages(machine, found)
            first = self.shown.setdefault((machine.mode, found, pages), machine.cpu)
            if first != machine.cpu:
                yield paragraph(f"Shared with CPU {first}, shown there.")
                return
        if name in ("gdt", "ldt"):
            yield from self._descriptors(machine, found)
        elif name == "tss" and machine.wide:
            yield from self._tss(machine, found)
        elif name == "tss" or machine.mode == "real":
            lines = text.body(machine, self.image, name, found, self.everything, self.occupants)
            yield element("pre", "\n".join(line.removeprefix("  ") for line in lines), class_=SCROLLS, tabindex=0)
        else:
            yield from self._gates(machine, found)

    def _descriptors(self, machine: Machine, found: Table) -> Iterator[Markup]:
        gdt = machine.gdt if found.name == "gdt" else machine.ldt
        shown, rest = rows.descriptors(machine, found, gdt, self.everything)
        cells = [
            (code(f"{entry.selector:#x}"), entry.index, rows.descriptor(entry), self._bits(entry.raw, entry.descriptor))
            for entry in shown
        ]
        name = rows.title(machine, found.name)
        yield table(f"{name} of CPU {machine.cpu}", ("selector", "slot", "meaning", "bytes, and bits"), cells)
        yield from (paragraph(said, "quiet") for said in rest)

    def _gates(self, machine: Machine, found: Table) -> Iterator[Markup]:
        runs, rest = rows.gates(machine, found, self.everything)
        cells = []
        for run in runs:
            row, gate = rows.gate_row(machine, self.image, run), run[0][1]
            more = "; ".join(row.remarks)
            opened = self._bits(bytes(gate), gate)
            cells.append((row.vectors.strip(), row.kind, code(row.target), row.ist, row.dpl, code(more), opened))
        heads = ("vector", "type", "handler", "IST", "DPL", "name", "bytes, and bits")
        yield table(f"IDT of CPU {machine.cpu}", heads, cells)
        yield from (paragraph(said, "quiet") for said in rest)

    def _tss(self, machine: Machine, found: Table) -> Iterator[Markup]:
        known = dict(stacks(machine, self.occupants))
        cells: list[tuple[object, object, object]] = []
        for field in STACKS:
            name = field.upper()
            if not found.has(Tss.field(field)):
                cells.append((name, "", rows.unread(found, Tss.field(field))))
            elif name in known:
                top = known[name].top
                label = self.image.symbols.place(top)
                place = join(code(f"{top:#x}"), f" {label}" if label else None)
                cells.append((name, place, "; ".join(rows.stack_rows(known[name]))))
            else:
                cells.append((name, code("0x0"), ""))
        yield table(f"Stacks of CPU {machine.cpu}", ("stack", "top", "size, and what lies around it"), cells)
        yield paragraph(f"I/O map: base {rows.ports(machine, found)}")
        yield self._bits(found.data[: Tss.size], machine.tss, "all fields")

    def _bits(self, raw: bytes, value: Layout, summary: str = "") -> Markup:
        """The bytes; up to a limit, the diagram that opens beneath them."""
        shown = summary or code(raw.hex())
        if value.size != len(raw) or self.diagrams == budgets.DIAGRAMS:
            return element("span", shown)
        self.diagrams += 1
        return bits(shown, value)


def _registers(machine: Machine) -> list[tuple[str, object]]:
    numbers, segments = text.registers(machine)
    found: list[tuple[str, object]] = [("registers", code(", ".join(numbers)))] if numbers else []
    if segments:
        found.append(("segments", code(", ".join(segments))))
    if machine.assumed:
        found.append(("assumed", "; ".join(machine.assumed)))
    return found
