"""The tables as JSON for other programs: tables.json.

    "kind": "idt", "name": "idt", "base": "0xffffffff80201000", "limit": 4095, "entries": [

    "number": 8, "name": "#DF", "addresses": { "offset": "asm_df" }, "raw": "80000800018e1080ffffffff00000000",
    "reserved1": 0, "offset": "0xffffffff80100080", "p": true, "dpl": 0, "s": false, "type": 14, "reserved0": 0,
    "ist": 1, "selector": 8

What has no address yet is null; `addresses` says what it will be.
"""

from __future__ import annotations

import json

from ..errors import NotThere
from ..tables.tss import STACKS
from . import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..config.compiled import CompiledTable, CompiledTables, Item, Lookup

HEX = {"base", "offset", *STACKS}


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """One document."""
    document = {
        "schema": 1,
        "config": tables.source.path,
        "constants": {name: hex(value) if name == "STAR" else value for name, value in tables.constants.items()},
        "tables": [_table(table, find) for table in tables.all],
    }
    return {"tables.json": json.dumps(document, indent=1) + "\n"}


def _table(table: CompiledTable, find: Lookup) -> dict[str, Any]:
    try:
        base: str | None = hex(table.place.at(find))
    except NotThere:
        base = None
    entries = [_entry(table, item, find) for item in table.items]
    return {"kind": table.kind, "name": table.name, "base": base, "limit": table.size - 1, "entries": entries}


def _entry(table: CompiledTable, item: Item, find: Lookup) -> dict[str, Any]:
    try:
        value, raw = item.at(find), bytes(item.at(find)).hex()
    except NotThere:
        value, raw = item.value, None
    # the stack pointers of a TSS are ist1, ist2; the field of a gate that is called ist is a number
    wide = {field.name for field in value.fields if field.width > 16 and field.name in HEX}
    fields = {name: hex(number) if name in wide else number for name, number in value.asdict().items()}
    if raw is None:
        fields |= dict.fromkeys(item.addresses)
    addresses = {field: str(address) for field, address in item.addresses.items()}
    return {"number": number(table, item), "name": item.name, "addresses": addresses, "raw": raw, **fields}
