"""What `tomllib` does not say of a TOML text: the line of every key, and what a mistake in it was meant to be."""

from __future__ import annotations

import re
import tomllib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    Path: TypeAlias = tuple[str | int, ...]

    Token: TypeAlias = tuple[str, int]  # its text and its line

# More than any configuration has, and few enough for tomllib, which recurses and copies
DEPTH, PARTS, DIGITS = 16, 16, 64
# Each branch takes what it can and never gives back, also where the text is not TOML: one pass, whatever it holds
_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5}|\Z)|' r"'''(?:[^']|'(?!''))*+(?:'{3,5}|\Z)|"
    r'"(?:[^"\\\n]|\\[^\n])*+"?|' r"'[^'\n]*+'?|"  # strings
    r"#[^\n]*+|[\[\]{}=,.\n]|[^\s\[\]{}=,.\"'#]++",
    re.DOTALL,
)  # fmt: skip
_NUMBER = re.compile(r"[+-]?[0-9]\w*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WORDS = re.compile(r"(?:\{vector\}|[^\[\]{}=,\"'#])++")
_RANGE_KEY = re.compile(r"\s*+([0-9]+\.\.[0-9]+)\s*=")
_COMMENTED = re.compile(r"(#[A-Z]{2})(?=\s*=)")
_UNQUOTED = ("Invalid value", "Expected newline", "Unclosed inline table", "Unclosed array")  # tomllib's words


def tokens(text: str) -> Iterator[Token]:
    """The tokens of a TOML text, comments and blanks left out, and a line end behind them; `text` may be anything."""
    line, last = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", last, match.start())
        last = match.start()
        if not match[0].startswith("#"):
            yield match[0], line
    yield "\n", line


def beyond_limits(tokens: Iterable[Token]) -> tuple[str, int] | None:
    """What is too deep, too long or too large for a configuration, as a sentence, and its line."""
    depth = parts = 0
    for token, line in tokens:
        depth += (token in ("[", "{")) - (token in ("]", "}"))
        if token == ".":
            parts += 1
        elif token in ("\n", ",", "=", "[", "]", "{", "}"):
            parts = 0
        if depth > DEPTH:
            return f"values are nested more than {DEPTH} deep", line
        if parts >= PARTS:
            return f"a key has more than {PARTS} parts", line
        if len(token) > DIGITS and _NUMBER.fullmatch(token):
            return f"a number of {len(token):,} digits: at most {DIGITS} can be read", line
    return None


def cure(line: str, column: int, message: str) -> str | None:
    """What to write instead in a line that is not TOML, where that is clear; tomllib gave `column` and `message`."""
    if key := re.match(r"#[A-Z]{2}\b", line[column - 1 :]):
        return f'elsewhere # begins a comment, so the key stands in quotes: "{key[0]}"'
    if key := _RANGE_KEY.match(line):
        return f'a range stands in quotes: "{key[1]}"'
    if not message.startswith(_UNQUOTED):
        return None
    for match in _WORDS.finditer(line):
        word = match[0].strip()
        before, behind = line[: match.start()][-1:], line[match.end() :][:1]
        if match.start() < column <= match.end() + 1 and before in ("", "=", "[", ",") and behind in ("", *",]}#"):
            if word in ("True", "False"):
                return f"in TOML it is {word.lower()}"
            return f'text stands in quotes: "{word}"' if 0 < len(word) <= DIGITS else None
    return None


def commented_keys(text: str) -> dict[str, int]:
    """Mnemonic -> line of each comment on its own line that, in quotes, would be the key of a gate: `#DF = ...`."""
    found: dict[str, int] = {}
    for match in _TOKEN.finditer(text):
        key = _COMMENTED.match(match[0])
        if key and key[1] not in found and not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].strip():
            found[key[1]] = text.count("\n", 0, match.start()) + 1
    return found


def key_lines(tokens: Iterable[Token]) -> dict[Path, int]:
    """Path -> line, from 1, of every key, header and array element; the tokens are known to be TOML."""
    return _Scanner(tokens).scan()


def quoted(value: object) -> str:
    """A value as it is shown to a person: cut when it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text):,} characters)"


def shown(path: Path) -> str:
    """A path as it is written: `idt."#DF".ist`, `cpu[1].ist1`."""
    words = ""
    for part in path:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            part = part if len(part) <= 100 else f"{part[:80]}..."
            words += ("." if words else "") + (part if _BARE.fullmatch(part) else f'"{part}"')
    return words


class _Scanner:
    def __init__(self, tokens: Iterable[Token]) -> None:
        self.tokens = list(tokens)
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
