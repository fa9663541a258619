"""What the site has beside the pages in this folder: MkDocs calls it (`hooks` in mkdocs.yml) while it builds.

Each page is made of the one place that knows: the parsers of the commands, the schema of the configuration, the
vectors, the glossary, the JSON schemas, the names in docs/api.md.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from x86tables import commands
from x86tables.config import schema
from x86tables.render import completion, glossary, lines
from x86tables.tables import vectors

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SCHEMAS = ROOT / "x86tables/json_schemas"
COPIED = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}

# The configuration, by table: what is written for each key.
EXAMPLES = {
    "Config": {
        "gdt": '[gdt]\nsegments = ["kernel_code", "kernel_data", "tss"]',
        "cpu": '[[cpu]]\nist1 = { name = "double_fault", bottom = "df_stack_0", size = "8 KiB", guard = "8 KiB" }',
        "idt": '[idt]\n"#DF" = { handler = "asm_df", ist = "double_fault" }',
        "syscall": '[syscall]\nkernel = "kernel_code"\nuser = "user_code"',
        "memory": '[[memory]]\nname = "kernel"\nstart = "_text"\nend = "_end"\npermissions = "rx"',
        "symbols": "[symbols]\nasm_df = 0xffffffff80100080",
        "tables": '[tables]\nidt = "interrupt_table"',
        "stubs": '[stubs]\ncommon = "interrupt_common"',
        "machine": '[machine]\nvendor = "amd"\nsmap = true',
        "check": '[check]\nignore = ["STK008"]',
    },
    "GdtConfig": {"segments": 'segments = ["kernel_code", { name = "data", kind = "kernel_data", avl = true }, "tss"]'},
    "SegmentConfig": {
        "name": 'name = "code"', "kind": 'kind = "user_code"', "base": "base = 0x10000", "limit": "limit = 0xfffff",
        "g": "g = true", "d_b": "d_b = false", "l": "l = true", "avl": "avl = true", "p": "p = true", "dpl": "dpl = 3",
        "s": "s = true", "type": "type = 0xb",
    },
    "CpuConfig": {
        "count": "count = 64", "tss": 'tss = "tss_{cpu}"',
        "stack": 'stack = { bottom = "boot_stack", size = "16 KiB", guard = "4 KiB" }',
        **{f"rsp{n}": f'rsp{n} = {{ top = "ring{n}_stack_top" }}' for n in range(3)},
        **{
            f"ist{n}": f'ist{n} = {{ name = "{name}", bottom = "{name}_stack", size = "8 KiB", guard = "8 KiB" }}'
            for n, name in enumerate(("double_fault", "nmi", "debug", "machine_check", "vmm", "page_fault", "spare"), 1)
        },
    },
    "StackConfig": {
        "bottom": 'bottom = "double_fault_stack"', "size": 'size = "20 KiB"', "top": 'top = "stack_end - 16"',
        "name": 'name = "double_fault"', "guard": 'guard = "8 KiB"',
    },
    "Strided": {"base": 'base = "irq_entries"', "stride": "stride = 16"},
    "GateConfig": {
        "handler": 'handler = "isr_{vector}"', "type": 'type = "trap"', "ist": 'ist = "double_fault"', "dpl": "dpl = 3",
        "segment": 'segment = "kernel_code"', "stub": "stub = false",
    },
    "SyscallConfig": {
        "kernel": 'kernel = "kernel_code"', "user": 'user = "user_code"', "vectors": "vectors = [0x80]"
    },
    "MemoryConfig": {
        "name": 'name = "kernel"', "start": 'start = "_text"', "end": 'end = "_end"', "size": 'size = "1 MiB"',
        "permissions": 'permissions = "rx"',
    },
    "TablesConfig": {
        "gdt": 'gdt = "boot_gdt"', "idt": 'idt = "interrupt_table"', "gdtr": 'gdtr = "gdt_operand"',
        "idtr": 'idtr = "idt_operand"', "gates": "gates = 48",
    },
    "StubsConfig": {"common": 'common = "interrupt_common"', "load": 'load = "load_tables"'},
    "MachineConfig": {"vendor": 'vendor = "amd"', "la57": "la57 = true", "smep": "smep = true", "smap": "smap = true"},
    "CheckConfig": {"select": 'select = ["IDT", "STK001"]', "ignore": 'ignore = ["IDT021"]'},
}  # fmt: skip
# Where each table stands in the file, in the order of the page.
PLACES = {
    "Config": "the file", "GdtConfig": "[gdt]", "SegmentConfig": "a segment in [gdt] segments", "CpuConfig": "[[cpu]]",
    "StackConfig": "a stack of [[cpu]]", "GateConfig": "a gate in [idt]", "Strided": "one behind the other",
    "SyscallConfig": "[syscall]", "MemoryConfig": "[[memory]]", "TablesConfig": "[tables]", "StubsConfig": "[stubs]",
    "MachineConfig": "[machine]", "CheckConfig": "[check]",
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for place, text in made():
        files.append(File.generated(config, place, content=text))
    return files


LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)((?:#[^)\s]*)?)\)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of the folder lead to the copy that the site has, or become plain text."""
    here = page.file.src_uri
    up = "../" * here.count("/")
    source = Path("." if here in COPIED.values() else f"docs/{here}").parent  # where the page itself stands

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        if not target or "://" in target:
            return found[0]
        path = os.path.normpath(source / target)
        if path in COPIED:
            return f"[{text}]({up}{COPIED[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{text}]({up}{path.removeprefix('docs/')}{anchor})"
        if path == "docs":
            return f"[{text}]({up}index.md)"
        return f"[{text}]({up}reference/schemas.md)" if path == "x86tables/json_schemas" else text

    return LINK.sub(link, markdown)


def made() -> Iterator[tuple[str, str]]:
    """Path and text of every page that is generated."""
    for name, place in COPIED.items():
        yield place, (ROOT / name).read_text()
    for command in parsed():
        yield f"reference/commands/{command.name}.md", "\n".join(command_page(command)) + "\n"
    yield "reference/configuration.md", "\n".join(configuration()) + "\n"
    yield "reference/vectors.md", "\n".join(vector_page()) + "\n"
    yield "reference/words.md", "\n".join(words()) + "\n"
    yield "reference/schemas.md", "\n".join(schemas()) + "\n"
    yield "reference/python.md", "\n".join(python()) + "\n"


def parsed() -> list[completion.Command]:
    """Every command, as its parser has it."""
    return [
        completion.command(name, commands.summary(name), commands.parser(name), {}) for name in sorted(commands.names())
    ]


def command_page(command: completion.Command) -> Iterator[str]:
    """What it does, and its arguments."""
    yield f"# x86tables {command.name}\n"
    for part, kept in lines.paragraphs(command.description):
        yield f"```text\n{part}\n```\n" if kept else f"{_cell(part)}\n"
    yield "| argument | |\n|---|---|"
    for argument in command.arguments:
        shown = ", ".join(argument.flags) + (f" {argument.value}" if argument.flags and argument.value else "")
        said = f"{argument.help}: {argument.listed}" if argument.listed else argument.help
        yield f"| `{shown or argument.value}` | {_cell(said.removeprefix(': '))} |"


def configuration() -> Iterator[str]:
    """Every table and key of the TOML file, with an example."""
    known: dict[str, Any] = schema.schema()["$defs"]
    yield "# The configuration\n"
    yield (
        "What a kernel declares, in TOML, for [build](commands/build.md), [check](commands/check.md), "
        "[link](commands/link.md) and [prove](commands/prove.md). "
        "`x86tables schema` prints its JSON Schema, for editors.\n"
    )
    for name, place in PLACES.items():
        yield f"## {place}\n\n{_cell(known[name]['description'])}\n"
        yield f"| {'table' if name == 'Config' else 'key'} | | example |\n|---|---|---|"
        for key, declared in known[name]["properties"].items():
            example = "<br>".join(f"`{line}`" for line in EXAMPLES[name][key].splitlines())
            yield f"| `{key}` | {_cell(' '.join(_said(declared, known)))} | {_cell(example)} |"
        yield ""


def _said(declared: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    """What the schema says of a key: its description or that of its table, which values, which one without it."""
    refs = [one["$ref"] for one in (declared, *declared.get("anyOf", ()), declared.get("items", {})) if "$ref" in one]
    if "description" in declared:
        yield declared["description"]
    elif refs:
        yield known[refs[0].rpartition("/")[2]]["description"]
    values: list[Any] = declared.get("enum") or next(
        (one["enum"] for one in declared.get("anyOf", ()) if "enum" in one), []
    )
    if values:
        yield f"One of {', '.join(str(value) for value in values if value)}."
    default = declared.get("default")
    if default and not isinstance(default, dict):
        yield f"Default: `{json.dumps(default)}`."


def vector_page() -> Iterator[str]:
    """The exceptions."""
    yield "# Vectors\n\nThe exceptions, and their class for the double-fault decision.\n"
    yield "| vector | mnemonic | name | reported as | error code | class, Intel | class, AMD |"
    yield "|---|---|---|---|---|---|---|"
    for row in vectors.EXCEPTIONS:
        code = "yes" if row.error_code else "no"
        name = f"{row.number} | {row.mnemonic or '-'} | {row.name} | {row.kind}"
        yield f"| {name} | {code} | {row.intel} | {row.amd} |"
    yield f"\nSource: {(vectors.Vector.__doc__ or '').rpartition('Source: ')[2]}"


def words() -> Iterator[str]:
    """All that `explain` knows besides rules."""
    yield "# Words of the output\n\nWhat `x86tables explain WORD` says; rules have [their own page](../rules.md).\n"
    for name in glossary.names():
        for topic in glossary.find(name):
            yield f"## {topic.title}\n\n{_cell(topic.text)}\n"
            if topic.figure:
                yield f"```text\n{topic.figure}\n```\n"
            source = re.sub(r"docs/([a-z]+)\.md", r"[docs/\1.md](../\1.md)", _cell(topic.source))
            yield f"*{source}*\n"


def schemas() -> Iterator[str]:
    """The documents that `--format json` prints."""
    yield "# JSON\n\nThe schemas are in the installed package, in `x86tables/json_schemas/`: draft 2020-12.\n"
    for path in sorted(SCHEMAS.glob("*.schema.json")):
        schema = json.loads(path.read_text())
        yield f"## {path.name.removesuffix('.schema.json')}\n\n{_cell(schema.get('description', ''))}\n"
        yield f'??? note "{path.name}"\n'
        yield "    ```json"
        yield from (f"    {line}" for line in path.read_text().splitlines())
        yield "    ```\n"


def python() -> Iterator[str]:
    """The docstrings of what docs/api.md lists."""
    yield "# Python, name by name\n\nWhat [is public](../api.md), with its docstrings.\n"
    module = ""
    for line in (DOCS / "api.md").read_text().splitlines():
        if heading := re.fullmatch(r"## `([\w.]+)`", line):
            module = heading[1]
            yield f"## {module}\n"
        elif module and line.startswith("- `") and module != "x86tables.strategies":
            for name in re.findall(r"`(\w+)`", line.partition(":")[0]):
                yield f"::: {module}.{name}\n    options:\n      heading_level: 3\n"


def _cell(text: str) -> str:
    """Text for a cell of a table or a paragraph: one line; angle brackets are no tags."""
    return " ".join(text.replace("<br>", "\0").split()).replace("<", "&lt;").replace("|", "\\|").replace("\0", "<br>")
