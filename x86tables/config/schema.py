"""The JSON Schema of the configuration, from the types, with what the types cannot say."""

from __future__ import annotations

import msgspec

from ..tables.vectors import BY_MNEMONIC
from .keys import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ONE = r"(0[xX][0-9a-fA-F]{1,2}|\d{1,3}|" + "|".join(BY_MNEMONIC) + ")"


def schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12)."""
    document = msgspec.json.schema(Config)
    kinds = document["$defs"]
    gates = kinds["Config"]["properties"]["idt"]
    gates["patternProperties"] = {rf"^{ONE}(\.\.{ONE})?$": gates["additionalProperties"]}
    gates["additionalProperties"] = False
    whole = {"required": ["bottom", "size"], "not": {"required": ["top"]}}
    bare = {"required": ["top"], "not": {"anyOf": [{"required": [key]} for key in ("bottom", "size", "guard")]}}
    kinds["StackConfig"]["oneOf"] = [whole, bare]
    kinds["MemoryConfig"]["oneOf"] = [{"required": ["end"]}, {"required": ["size"]}]
    without_null(document)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "x86tables configuration", **document}


def without_null(node: Any) -> None:
    """TOML has no null: a key is there or it is not."""
    if isinstance(node, list):
        for part in node:
            without_null(part)
    elif isinstance(node, dict):
        if node.get("default", 0) is None:
            del node["default"]
        if isinstance(node.get("anyOf"), list):
            node["anyOf"] = [part for part in node["anyOf"] if part != {"type": "null"}]
        if isinstance(node.get("enum"), list):
            node["enum"] = [value for value in node["enum"] if value is not None]
        for part in node.values():
            without_null(part)
