"""Where a finding was written: the handler's source line, the declaration's key, or the symbol of what it is about."""

from __future__ import annotations

from functools import cached_property

from .errors import NotThere
from .records import Record
from .tables.idt import Gate
from .tables.tss import STACKS
from .tables.vectors import label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .api import Image
    from .checks import Finding
    from .config.lines import Path
    from .delivery.scenarios import Scenario
    from .machine.machine import Machine

# What declares a register, and which key of a gate has a field
KEYS: dict[str, Path] = {
    "gdt": ("gdt",),
    "idt": ("idt",),
    "gdtr": ("tables", "gdtr"),
    "idtr": ("tables", "idtr"),
    "star[47:32]": ("syscall", "kernel"),
    "star[63:48]": ("syscall", "user"),
}
GATE_KEYS = {"offset": "handler", "selector": "segment", "ist": "ist", "dpl": "dpl", "type": "type"}
REGISTERS = {"gdt": "gdtr", "gdtr": "gdtr", "idt": "idtr", "idtr": "idtr", "tss": "tr", "tr": "tr"}


class Origin(Record):
    """A place in a source file, as debugging information or a configuration has it, and a symbol; either may be None.

    `line` counts from 1; `code` says that the symbol is a function's.
    """

    file: str | None = None
    line: int = 1
    symbol: str | None = None
    code: bool = False


class Origins:
    """Answers for one image."""

    def __init__(self, image: Image) -> None:
        self.image = image

    def finding(self, machine: Machine, finding: Finding) -> Origin:
        """Where to look for a finding of a CPU."""
        fields = (finding.field,) if isinstance(finding.field, str) else finding.field
        if self.image.tables is not None:
            return self._declared(machine.cpu, finding.table, finding.entries, fields)
        if finding.table == "idt" and finding.entries:
            return self._handler(machine, finding.entries)
        return Origin(symbol=self._symbol(machine, finding.table, fields))

    def scenario(self, machine: Machine, scenario: Scenario) -> Origin:
        """Where to look for how a scenario ends: at the gate of the last delivery in it, else at the stack in use."""
        simulation = None if scenario.worst is None else scenario.worst.simulation
        attempts = [attempt for one in (simulation.deliveries if simulation else ()) for attempt in one.attempts]
        entries = [attempt.event.vector for attempt in attempts[-1:]]
        if self.image.tables is not None:
            return self._declared(machine.cpu, "idt" if entries else "rsp", entries, ())
        return self._handler(machine, entries) if entries else Origin(symbol=self._symbol(machine, "rsp", ()))

    def problem(self, sentence: str) -> Origin:
        """Where to look for a problem of the configuration."""
        return self._key(self._problems.get(sentence, ()))

    @cached_property
    def _problems(self) -> dict[str, Path]:
        from .config.validate import problems

        image = self.image
        return {} if image.tables is None or image.find is None else problems(image.tables, image.find)

    def _declared(self, cpu: int, table: str, entries: Iterable[int], fields: tuple[str, ...]) -> Origin:
        tables = self.image.tables
        assert tables is not None
        own = tables.tss[cpu].items[0].path
        for entry in entries:
            if table == "idt" and entry < len(tables.idt.items):
                path = tables.idt.items[entry].path
                if path == KEYS["idt"] and (line := tables.source.comments.get(label(entry))):
                    return Origin(tables.source.path, line)
                return self._key((*path, *(GATE_KEYS[field] for field in fields[:1] if field in GATE_KEYS)))
            for item in tables.gdt.items if table == "gdt" else ():
                if item.offset <= entry * 8 < item.offset + item.value.size:
                    return self._key(item.path)
        if table in ("tss", "tr", "rsp"):
            slot = "stack" if table == "rsp" else next((field for field in fields if field in STACKS), "tss")
            return self._key((*own, slot))
        return self._key(KEYS.get(table, ()))

    def _key(self, path: Path) -> Origin:
        tables = self.image.tables
        assert tables is not None
        return Origin(tables.source.path, tables.source.line(path) or 1)

    def _handler(self, machine: Machine, vectors: Iterable[int]) -> Origin:
        """The first of several handlers that has a source line, else the first that has a name."""
        symbol = None
        for vector in vectors:
            try:
                gate = machine.gates[vector]
            except (NotThere, IndexError):
                continue
            if not gate.p or not isinstance(gate, Gate):
                continue
            name, place = self._name(gate.offset), self.image.symbols.line(gate.offset)
            if place is not None:
                file, _, line = place.rpartition(":")
                return Origin(file, int(line), name, code=True)
            symbol = symbol or name
        if symbol is not None:
            return Origin(symbol=symbol, code=True)
        return Origin(symbol=self._symbol(machine, "idt", ()))

    def _symbol(self, machine: Machine, table: str, fields: tuple[str, ...]) -> str | None:
        """What a table's address is called, or the stack that a field of the TSS points to the end of."""
        slot = next((field for field in fields if field in STACKS), None) if table == "tss" else None
        try:
            if slot is not None and (top := getattr(machine.tss, slot)):
                return self._name(top - 1)
        except NotThere:
            pass
        if table == "rsp":
            return None if machine.registers.rsp is None else self._name(machine.registers.rsp)
        register = getattr(machine.registers, REGISTERS[table]) if table in REGISTERS else None
        return None if register is None else self._name(register.base)

    def _name(self, address: int) -> str | None:
        name = self.image.symbols.name(address)
        return name.partition("+0x")[0] if name else None
