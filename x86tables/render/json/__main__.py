"""Write the JSON Schemas of what commands print: python -m x86tables.render.json FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ...documents import Document, schema
from ...emit.json import TablesJson
from .check import CheckJson
from .decode import DecodeJson
from .diff import DiffJson
from .dump import DumpJson
from .error_lookup import in_image  # noqa: F401 - declares what is in a DecodeJson
from .explain import ExplainJson
from .log import LogJson
from .prove import ProveGuestJson, ProveJson, ProveOverflowJson
from .scan import ScanJson
from .trace import TraceJson

COMMANDS: dict[str, tuple[type[Document], ...]] = {
    "check": (CheckJson,),
    "decode": (DecodeJson,),
    "diff": (DiffJson,),
    "dump": (DumpJson,),
    "explain": (ExplainJson,),
    "log": (LogJson,),
    "prove": (ProveJson, ProveOverflowJson, ProveGuestJson),
    "scan": (ScanJson,),
    "trace": (TraceJson,),
}


def schemas() -> dict[str, str]:
    """The schema of each document by the name of its file."""
    made = {name: schema(f"x86tables {name} --format json", *kinds) for name, kinds in COMMANDS.items()}
    made["tables"] = schema("x86tables build --emit json: tables.json", TablesJson)
    return {f"{name}.schema.json": json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for file, content in schemas().items():
        Path(sys.argv[1], file).write_text(content)
