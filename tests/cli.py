"""The command line as the tests call it: in this process, with what it printed."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from x86tables.commands import BUG, main

IMAGES = Path(__file__).parent / "images"
SCHEMAS = Path(__file__).parent.parent / "x86tables/json_schemas"


def call(*argv: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `x86tables ARGV`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in argv])
    assert status != BUG, err.getvalue()
    return status, out.getvalue(), err.getvalue()


def output(*argv: object) -> str:
    """What a command prints that has nothing to complain about."""
    status, out, err = call(*argv)
    assert (status, err) == (0, "")
    return out


def refused(*argv: object) -> str:
    """The one sentence with which a command refuses."""
    status, out, err = call(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("x86tables: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("x86tables: ").rstrip("\n")


def validator(name: str) -> Draft202012Validator:
    """The published schema of a command's JSON."""
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def fitting(name: str, text: str) -> Any:
    """A document that fits its published schema."""
    document = json.loads(text)
    errors = [f"{error.json_path}: {error.message}" for error in validator(name).iter_errors(document)]
    assert not errors
    return document


def answers(path: Path) -> list[tuple[int, object]]:
    """What dump and check say of an image, but for its name."""
    found: list[tuple[int, object]] = []
    for words in (["dump", path], ["check", path, "--scenario", "all"]):
        status, out, _ = call(*words, "--format", "json")
        document = json.loads(out) if out else {"image": {}}
        document["image"].pop("path", None)
        found.append((status, document))
    return found


def dumped(*argv: object) -> dict[str, Any]:
    """The JSON of `x86tables dump`."""
    document: dict[str, Any] = json.loads(output("dump", *argv, "--format", "json"))
    return document
