"""Tables whose addresses may still be symbols: what the emitters write out and what is patched into a linked kernel."""

from __future__ import annotations

from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from ..tables.layout import Layout
    from .keys import Config
    from .lines import Path
    from .read import Source

    Lookup: TypeAlias = "Callable[[str], int]"  # the address of a symbol; NotThere when there is none


class Address(Record):
    """`symbol + offset`; without a symbol, a number."""

    symbol: str | None
    offset: int = 0

    def at(self, lookup: Lookup) -> int:
        """The number, the symbol's address given by `lookup`."""
        base = lookup(self.symbol) if self.symbol is not None else 0
        return (base + self.offset) % (1 << 64)

    def plus(self, offset: int) -> Address:
        """An address further on."""
        return Address(self.symbol, self.offset + offset)

    def __str__(self) -> str:
        if self.symbol is None:
            return f"{self.offset:#x}"
        sign = "+" if self.offset > 0 else "-"
        return self.symbol + (f" {sign} {abs(self.offset):#x}" if self.offset else "")


class Item(Record):
    """One structure of a table: its value, and the fields (0 in it) that are addresses.

    `name` is for people, `path` the key that declares it.
    """

    offset: int
    name: str
    value: Layout
    addresses: dict[str, Address] = {}  # noqa: RUF012 - never changed
    path: Path = ()

    def at(self, lookup: Lookup) -> Layout:
        """The structure with its addresses filled in."""
        return self.value.replace(**{field: address.at(lookup) for field, address in self.addresses.items()})


class CompiledTable(Record):
    """A table, or an operand of LGDT or LIDT: `kind` is gdt, idt, tss, gdtr or idtr, `name` its own in sources.

    `place` is where it is; the items lie one behind the other.
    """

    kind: str
    name: str
    place: Address
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(item.value.size for item in self.items)

    @property
    def symbols(self) -> set[str]:
        """The symbols that its contents need."""
        return {address.symbol for item in self.items for address in item.addresses.values() if address.symbol}

    def build(self, lookup: Lookup) -> bytes:
        """The bytes. NotThere when a symbol has no address."""
        return b"".join(bytes(item.at(lookup)) for item in self.items)


class CompiledStack(Record):
    """A declared stack of a CPU. `slot` is rsp0..2, ist1..7, or `stack` for the one the kernel runs on.

    `bottom` and `size` are None where only the top was given; `guard` is the size of the pages below that the boot code
    leaves unmapped.
    """

    cpu: int
    slot: str
    name: str
    top: Address
    bottom: Address | None
    size: int | None
    guard: int
    path: Path


class MemoryRange(Record):
    """Linear memory from `start` to before `stop`; no permissions make it a guard."""

    name: str
    start: Address
    stop: Address
    permissions: str
    path: Path = ()


class VectorHandler(Record):
    """The handler of a vector, and whether a stub is written for it."""

    vector: int
    address: Address
    stub: bool


class CompiledTables(Record):
    """Everything that a configuration declares, its addresses not yet looked up.

    `code` and `data` are the selectors of the segments for ring 0, which gates and the boot code load; 0 for no data.
    `selectors` are as loaded, RPL included; `ists` are 1..7 by the stack's name; `known` are the addresses that the
    configuration itself gives to symbols.
    """

    gdt: CompiledTable
    idt: CompiledTable
    tss: tuple[CompiledTable, ...]
    gdtr: CompiledTable
    idtr: CompiledTable
    code: int
    data: int
    selectors: dict[str, int]
    ists: dict[str, int]
    star: int | None
    stacks: tuple[CompiledStack, ...]
    memory: tuple[MemoryRange, ...]
    handlers: tuple[VectorHandler, ...]
    known: dict[str, int]
    config: Config
    source: Source

    @property
    def all(self) -> tuple[CompiledTable, ...]:
        """Every table, and then the operands of LGDT and LIDT."""
        return (self.gdt, self.idt, *self.tss, self.gdtr, self.idtr)

    def describe(self, stack: CompiledStack) -> str:
        """What a sentence calls one of the stacks."""
        name = "the stack" if stack.name == "stack" else f"the stack {stack.name}"
        return f"{name} of CPU {stack.cpu}" if len(self.tss) > 1 else name

    @property
    def addresses(self) -> Iterator[Address]:
        """Every address that the declaration names, each as often as it is used."""
        for table in self.all:
            yield table.place
            for item in table.items:
                yield from item.addresses.values()
        for stack in self.stacks:
            yield stack.top
        for memory in self.memory:
            yield memory.start
            yield memory.stop

    @property
    def constants(self) -> dict[str, int]:
        """What sources call selectors, IST numbers and the STAR register: upper-case name -> number."""
        found = {f"{name.upper()}_SELECTOR": selector for name, selector in self.selectors.items()}
        found |= {f"{name.upper()}_IST": number for name, number in self.ists.items()}
        return found | ({"STAR": self.star} if self.star is not None else {})
