"""The words of messages, docstrings and comments, and the walk in CONTRIBUTING.md."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "x86tables").rglob("*.py"))
# Turns that no native speaker of the field uses; matched without case, as whole words.
TURNS = (
    "no interrupt or trap gate", "no code segment", "no 64-bit code segment", "is no number", "no toml",
    "not what goes here", "as no memory does", "for ever", "goes round", "going round", "in silence",
    "panic printer", "end like it", "somebody", "nobody", "whoever", "what becomes of", "what became of",
    "story", "stories", "and its kin", "told", "foresaw", "leads nowhere good", "habits?", "eaten", "several ways",
    "what there is to say", "room on the interrupt", "would tell",
)  # fmt: skip
WRONG = re.compile(rf"\b(?:{'|'.join(TURNS)})\b", re.I)
KEYS = {"stories", "habits", "ways", "rounds", "eaten", "odd"}  # of the JSON, which stay


def texts(source: str) -> list[tuple[int, str]]:
    """Line and text of every string, docstrings too, and of every comment."""
    found = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in KEYS
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return found + [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_turns(path: Path) -> None:
    for line, text in texts(path.read_text()):
        text = re.sub(r"^ *(?:" + "|".join(KEYS) + r"|more_stories): ", "", text, flags=re.M)
        assert not (found := WRONG.search(text)), f"{path.name}:{line}: {found and found[0]!r} in {text[:100]!r}"


def test_documents() -> None:
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        assert not (found := WRONG.search(path.read_text())), f"{path.name}: {found and found[0]!r}"


def test_the_walk_names_what_is_there() -> None:
    """Each file of "How a verdict comes about" is there, and defines the names that stand beside it."""
    walk = (ROOT / "CONTRIBUTING.md").read_text().split("## How a verdict comes about")[1].split("\n## ")[0]
    steps = re.split(r"^\d+\. ", walk, flags=re.M)[1:]
    assert len(steps) == 8
    package = "".join(path.read_text() for path in FILES)
    for step in steps:
        files = re.findall(r"`(x86tables/[\w/]+\.py)`", step)
        sources = "".join((ROOT / file).read_text() for file in files)
        named = re.match(r"`[\w/.]+`, `(\w+)`", step)
        assert files and named
        assert re.search(rf"^ *def {named[1]}\(", (ROOT / files[0]).read_text(), re.M), step
        for name in re.findall(r"`([A-Za-z_]\w+)`", step):
            assert re.search(rf"^ *(?:def|class) {name}\b|^{name} = ", sources, re.M) or re.search(
                rf"^class {name}\b", package, re.M
            ), name
        for line in re.findall(r"`(if [^`]+)`", step):
            assert line in sources
