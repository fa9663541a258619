"""README.md and docs/ tell the truth: their Python runs, their console output is what commands print.

A line of three dots in console output stands for any lines, and one space for many: the words are compared, not how
wide the columns are.
"""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from x86tables.commands import main, names

ROOT = Path(__file__).parent.parent
RUN_ELSEWHERE = {"overflow.md"}  # by tests/test_tutorial.py, in a shell
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Linux's kernel code and data segments, a TSS descriptor of limit 0x67, interrupt gates on no stack and on IST1, and
# the fields of the TSS where the manual's figure has them
GDT = "0000000000000000 ffff0000009baf00 ffff00000093cf00 6700003000890080 ffffffff00000000"
GATES = {8: "0000 0800 01 8e 1080 ffffffff 00000000", 14: "4000 0800 00 8e 1080 ffffffff 00000000"}
TSS = "00" * 0x24 + "0080 0080 ffff ffff" + "00" * (0x66 - 0x2C) + "6800"


def run(document: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run a document's blocks in order; what its Python has defined."""
    scope: dict[str, Any] = {}
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(), re.M | re.S):
        if kind == "python":
            exec(compile(text, document.name, "exec"), scope)  # noqa: S102 - it is our own text
        elif kind == "console" and text.startswith("$ x86tables "):
            command, expected = text.replace("\\\n", " ").split("\n", 1)
            if "--on bochs" in command and find_spec("bochscpu") is None:
                continue  # no wheel for this system; tests/test_proof.py says so
            capsys.readouterr()
            assert main(shlex.split(command)[2:]) in (0, 1), command
            shown, expected = (re.sub(" +", " ", part) for part in (capsys.readouterr().out, expected))
            pattern = re.escape(expected).replace(re.escape("...\n"), "(?:.*\n)*")
            assert re.fullmatch(pattern, shown), shown
    return scope


HERE = [path for path in DOCUMENTS if path.name not in RUN_ELSEWHERE]


@pytest.mark.parametrize("document", HERE, ids=[path.name for path in HERE])
def test_document(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("tests", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    scope = run(document, capsys)
    if document.name == "README.md":
        idt = bytearray(4096)
        for vector, gate in GATES.items():
            idt[vector * 16 : vector * 16 + 16] = bytes.fromhex(gate)
        assert bytes(scope["gdt"]) == bytes.fromhex(GDT)
        assert bytes(scope["tss"]) == bytes.fromhex(TSS)
        assert bytes(scope["idt"]) == bytes(idt)
        header = b"BOOTIMG1" + bytes.fromhex("00101080ffffffff 2700 00100080ffffffff ff0f 00200080ffffffff")
        assert scope["blob"] == header + bytes.fromhex(GDT) + bytes(idt) + bytes.fromhex(TSS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert "://" in link or (document.parent / link).exists(), link


def test_every_command_is_in_the_table() -> None:
    table = re.findall(r"^\| `x86tables (\w+)", (ROOT / "README.md").read_text(), re.M)
    assert sorted(table) == names()
