"""TOML, or the same as Python objects, decoded and validated; an error names key and line, and what is expected."""

from __future__ import annotations

import re
import tomllib
from difflib import get_close_matches

import msgspec
from msgspec import inspect

from .. import budgets
from ..errors import UsageError
from ..machine.files import load as load_file
from .keys import Config
from .lines import beyond_limits, commented_keys, cure, key_lines, quoted, shown, tokens

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .lines import Path


class Source:
    """Where a configuration was written: what its mistakes name. `comments` has the lines of `commented_keys`."""

    def __init__(
        self,
        path: str = "configuration",
        lines: Mapping[Path, int] | None = None,
        comments: Mapping[str, int] | None = None,
    ) -> None:
        self.path, self.lines, self.comments = path, lines or {}, comments or {}

    def line(self, path: Path) -> int | None:
        """The line of a key, else that of the table around it."""
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)

    def mistake(self, path: Path, message: str) -> UsageError:
        """The error for a key: `kernel.toml:12: idt."#DF".ist: message`."""
        line = self.line(path)
        place = f"{self.path}:{line}" if line else self.path
        return UsageError(f"{place}: {shown(path)}: {message}" if path else f"{place}: {message}")


def read(path: str) -> tuple[Config, Source]:
    """The configuration in a TOML file."""
    content = load_file(path)
    if len(content) > budgets.CONFIGURATION:
        raise UsageError(f"{path}: {len(content):,} bytes: a configuration has at most {budgets.CONFIGURATION:,}")
    try:
        text = bytes(content[:]).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: invalid TOML: the byte at offset {error.start:#x} is not UTF-8") from None
    if beyond := beyond_limits(tokens(text)):
        raise UsageError(f"{path}:{beyond[1]}: {beyond[0]}")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(path, text, str(error)) from None
    source = Source(path, key_lines(tokens(text)), commented_keys(text))
    return decode(data, source), source


def _invalid(path: str, text: str, error: str) -> UsageError:
    """tomllib's sentence behind its line and column, and what was meant."""
    message, _, end = error.partition(" (at ")
    where = re.fullmatch(r"line (\d+), column (\d+)\)", end)
    if not where:
        return UsageError(f"{path}: invalid TOML: {message}" + (" at the end of the file" if end else ""))
    line, column = int(where[1]), int(where[2])
    written = text.replace("\r\n", "\n").split("\n")[line - 1]
    meant = cure(written, column, message)
    return UsageError(f"{path}:{line}:{column}: invalid TOML: {message}" + (f"; {meant}" if meant else ""))


def decode(data: Mapping[str, Any], source: Source) -> Config:
    """A configuration from plain dictionaries and lists."""
    try:
        return msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise _mistake(data, error, source) from None


def _mistake(data: Mapping[str, Any], error: msgspec.ValidationError, source: Source) -> UsageError:
    message, _, place = str(error).rstrip("`").rpartition(" - at `$")
    path = _path(data, place if message else "")
    message = message or str(error)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        names = [f.name for f in _struct(_type(path, data)).fields]
        near = get_close_matches(unknown[1][:40], names, 1, 0.5)
        cure = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(names)}"
        return source.mistake((*path, unknown[1]), f"unknown key; {cure}")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
        return source.mistake(path, f"the key {missing[1]} is missing")
    if path[:1] == ("idt",) and path[2:] == ("ist",) and type(number := _value(data, path)) is int:
        return source.mistake(path, f"expected the name of a stack; found {number}: {_stack(data, number)}")
    return source.mistake(path, f"expected {_expected(_type(path, data))}; found {quoted(_value(data, path))}")


def _stack(data: Mapping[str, Any], number: int) -> str:
    """What to write for an IST number: the stack's name, or a stack."""
    if number == 0:
        return "without ist, a gate does not switch stacks"
    if not 1 <= number <= 7:
        return "a TSS has IST1..IST7"
    cpus = data.get("cpu", {})
    for cpu in cpus if isinstance(cpus, list) else [cpus]:
        stack = cpu.get(f"ist{number}") if isinstance(cpu, dict) else None
        if isinstance(stack, dict):
            return f"IST{number} is {quoted(stack.get('name', f'ist{number}'))}"
    return f"IST{number} is not declared: add ist{number} = {{name = ..., bottom = SYMBOL, size = N}} to [cpu]"


def _path(data: Mapping[str, Any], place: str) -> Path:
    """msgspec's `.idt[...].type` with the keys of dictionaries filled in: the first that is wrong."""
    path: Path = ()
    for name, number in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place):
        if number == "...":
            inside = _value(data, path)
            path += (next((key for key in inside if not _fits(path, inside, key)), next(iter(inside))),)
        else:
            path += (name or int(number),)
    return path


def _fits(path: Path, inside: Mapping[str, Any], key: str) -> bool:
    """Whether one entry of a dictionary at the top of the file is right."""
    try:
        msgspec.convert({str(path[0]): {key: inside[key]}}, Config)
    except msgspec.ValidationError:
        return False
    return True


def _value(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    """A type without its wrappers: what a value may be, None left out."""
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [one for part in kind.types for one in _alternatives(part)]
    return [] if isinstance(kind, inspect.NoneType) else [kind]


def _struct(kind: inspect.Type) -> inspect.StructType:
    return next(one for one in _alternatives(kind) if isinstance(one, inspect.StructType))


def _type(path: Path, data: Mapping[str, Any]) -> inspect.Type:
    """What belongs at a path."""
    kind: inspect.Type = inspect.type_info(Config)
    for number, part in enumerate(path):
        several = isinstance(_value(data, path[:number]), list)
        for one in _alternatives(kind):
            if several and isinstance(one, inspect.ListType):
                kind = one.item_type
                break
            if isinstance(one, inspect.DictType):
                kind = one.value_type
                break
            if not several and isinstance(one, inspect.StructType):
                kind = next(field.type for field in one.fields if field.name == part)
                break
    return kind


def _expected(kind: inspect.Type) -> str:
    """A type in words."""
    words: list[str] = []
    for one in _alternatives(kind):
        if isinstance(one, inspect.StructType):
            named = [word for word in words if word.startswith("one of")]
            return " or ".join([*named, getattr(one.cls, "shape", "a table")])
        if isinstance(one, inspect.LiteralType):
            words.append(f"one of {', '.join(sorted(map(str, one.values)))}")
        elif isinstance(one, inspect.IntType):
            words.append(f"{one.ge}..{one.le}" if one.le is not None else f"a number from {one.ge or 0}")
        elif isinstance(one, inspect.BoolType):
            words.append("true or false")
        elif isinstance(one, inspect.StrType):
            words.append(f"text like {one.pattern}" if one.pattern else "text")
        else:
            words.append("an array" if isinstance(one, inspect.ListType) else "a table")
    return " or ".join(dict.fromkeys(words))
