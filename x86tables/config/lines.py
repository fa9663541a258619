"""The line of every key in a TOML text, which `tomllib` does not tell."""

from __future__ import annotations

import re
import tomllib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Path: TypeAlias = tuple[str | int, ...]

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'|"  # strings
    r"#[^\n]*|[\[\]{}=,.\n]|[^\s\[\]{}=,.\"'#]+",
    re.DOTALL,
)  # fmt: skip
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def key_lines(text: str) -> dict[Path, int]:
    """Path -> line, from 1, of every key, header and array element; `text` is known to be TOML."""
    return _Scanner(text).scan()


def shown(path: Path) -> str:
    """A path as it is written: `idt."#DF".ist`, `cpu[1].ist1`."""
    words = ""
    for part in path:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            words += ("." if words else "") + (part if _BARE.fullmatch(part) else f'"{part}"')
    return words


class _Scanner:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, int]] = []
        line, last = 1, 0
        for match in _TOKEN.finditer(text):
            line += text.count("\n", last, match.start())
            last = match.start()
            if not match[0].startswith("#"):
                self.tokens.append((match[0], line))
        self.tokens += [("\n", line)]
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.tables: dict[Path, int] = {}  # arrays of tables: the number of the last one

    def scan(self) -> dict[Path, int]:
        prefix: Path = ()
        while self.at < len(self.tokens):
            if self._skip("\n"):
                continue
            if self._skip("["):
                several = self._skip("[")
                prefix = self._key((), several)
                self._skip("]")
                self._skip("]")
            else:
                self._assignment(prefix)
        return self.lines

    def _skip(self, token: str) -> bool:
        found = self.tokens[self.at][0] == token
        self.at += found
        return found

    def _key(self, prefix: Path, several: bool = False) -> Path:
        """A dotted key; each part of it is a path of its own. `several` for the header of an array of tables."""
        path = prefix
        while self.tokens[self.at][0] not in ("=", "]"):
            token, line = self.tokens[self.at]
            self.at += 1
            if token == ".":
                continue
            if not prefix and path in self.tables:
                path += (self.tables[path],)
            path += (next(iter(tomllib.loads(f"{token} = 0"))),)
            self.lines.setdefault(path, line)
        if several:
            self.tables[path] = self.tables.get(path, -1) + 1
        if not prefix and path in self.tables:
            path += (self.tables[path],)
            self.lines.setdefault(path, line)
        return path

    def _assignment(self, prefix: Path) -> None:
        path = self._key(prefix)
        self._skip("=")
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._skip("["):
            number = 0
            while not self._skip("]"):
                if not self._skip(",") and not self._skip("\n"):
                    self.lines[(*path, number)] = self.tokens[self.at][1]
                    self._value((*path, number))
                    number += 1
        elif self._skip("{"):
            while not self._skip("}"):
                if not self._skip(",") and not self._skip("\n"):
                    self._assignment(path)
        else:
            while self.tokens[self.at][0] not in (",", "]", "}", "\n"):
                self.at += 1
