"""The tables as JSON for other programs: tables.json.

    "kind": "idt", "name": "idt", "base": "0xffffffff80201000", "limit": 4095, "entries": [

    "number": 8, "name": "#DF", "addresses": { "offset": "asm_df" }, "raw": "80000800018e1080ffffffff00000000",
    "reserved1": 0, "offset": "0xffffffff80100080", "p": true, "dpl": 0, "s": false, "type": 14, "reserved0": 0,
    "ist": 1, "selector": 8

What has no address yet is null; `addresses` says what it will be.
"""

from __future__ import annotations

import json

from ..documents import Answer, Document, hexadecimal
from ..errors import NotThere
from ..tables.tss import STACKS
from . import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..config.compiled import CompiledTable, CompiledTables, Item, Lookup
    from ..documents import Hex, Natural, Raw

HEX = {"base", "offset", *STACKS}


class ItemJson(Document, additionalProperties={"type": ["integer", "boolean", "string", "null"]}):
    """An entry of a table, with the fields of its layout beside these.

    number: its slot in a GDT, its vector in an IDT
    addresses: fields that are an address, and of what
    raw: null when one of these has no address yet
    """

    number: Natural
    name: str
    addresses: dict[str, str]
    raw: Raw | None


class EmittedTableJson(Document):
    """A table; `base` is null when it has no address yet."""

    kind: str
    name: str
    base: Hex | None
    limit: Natural
    entries: list[ItemJson]


class TablesJson(Answer):
    """The tables of a configuration.

    constants: what the other languages call by these names; STAR is a hex string
    """

    config: str
    constants: dict[str, Natural | Hex]
    tables: list[EmittedTableJson]


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """One document."""
    constants: dict[str, Any] = dict(tables.constants)
    if "STAR" in constants:
        constants["STAR"] = hexadecimal(constants["STAR"])
    rows = [_table(table, find) for table in tables.all]
    document = TablesJson(config=tables.source.path, constants=constants, tables=rows)
    return {"tables.json": json.dumps(document, indent=1) + "\n"}


def _table(table: CompiledTable, find: Lookup) -> EmittedTableJson:
    try:
        base: int | None = table.place.at(find)
    except NotThere:
        base = None
    entries = [_entry(table, item, find) for item in table.items]
    return EmittedTableJson.of(table, base=base, limit=table.size - 1, entries=entries)


def _entry(table: CompiledTable, item: Item, find: Lookup) -> ItemJson:
    try:
        value, raw = item.at(find), bytes(item.at(find))
    except NotThere:
        value, raw = item.value, None
    # the stack pointers of a TSS are ist1, ist2; the field of a gate that is called ist is a number
    wide = {field.name for field in value.fields if field.width > 16 and field.name in HEX}
    fields: dict[str, Any] = {name: hex(part) if name in wide else part for name, part in value.asdict().items()}
    if raw is None:
        fields |= dict.fromkeys(item.addresses)
    addresses = {field: str(address) for field, address in item.addresses.items()}
    made = ItemJson(number=number(table, item), name=item.name, addresses=addresses, raw=raw)
    made.update(fields)
    return made
