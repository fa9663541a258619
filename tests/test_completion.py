"""Completion scripts, asked by the shells that they are for; the manual page, read by mandoc."""

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest
from cli import output

from x86tables.commands import names, parser

ROOT = Path(__file__).parent.parent
CASES = [
    ("x86tables exp", ["explain"]),
    ("x86tables check --format ", ["html", "json", "jsonl", "sarif", "svg", "text"]),
    ("x86tables check --steps --form", ["--format"]),
    ("x86tables explain IDT00", [f"IDT00{number}" for number in range(1, 10)]),
    ("x86tables check --scenario s", ["stack-overflow", "survival-matrix", "syscall-gap", "sysret"]),
    ("x86tables dump kernel.c", ["kernel.core"]),
    ("x86tables check --symbols System", ["System.map"]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the shell looks for files."""
    (tmp_path / "kernel.core").touch()
    (tmp_path / "System.map").touch()
    return tmp_path


def test_bash(folder: Path) -> None:
    (folder / "script").write_text(output("completion", "bash"))
    for line, expected in CASES:
        words = line.split(" ")
        given = " ".join(word or "''" for word in words)
        asked = (
            f"source ./script; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; "
            "_x86tables; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        found = subprocess.run(["bash", "-c", asked], cwd=folder, capture_output=True, text=True, check=True)
        assert not found.stderr
        offered = found.stdout.split() or sorted(path.name for path in folder.glob(f"{words[-1]}*"))  # -o default
        assert sorted(offered) == sorted(expected), line


@pytest.mark.needs("fish")
def test_fish(folder: Path) -> None:
    (folder / "script").write_text(output("completion", "fish"))
    for line, expected in CASES:
        asked = f"source ./script; complete -C '{line}'"
        found = subprocess.run(
            ["fish", "--no-config", "-c", asked], cwd=folder, capture_output=True, text=True, check=True
        )
        assert not found.stderr
        assert sorted(row.split("\t")[0] for row in found.stdout.splitlines()) == sorted(expected), line


@pytest.mark.needs("zsh")
def test_zsh(folder: Path) -> None:
    (folder / "_x86tables").write_text(output("completion", "zsh"))
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.environ |= {"PS1": "> ", "TERM": "dumb"}
        os.execlp("zsh", "zsh", "-f", "-i")
    try:
        os.write(terminal, b"fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; LISTMAX=9999; setopt nobeep\n")
        for line, expected in CASES:
            # Tab once completes or lists, whatever zsh thinks best; ^D after a complete word lists what may follow
            os.write(terminal, f"echo {'-' * 8}\n".encode() + line.encode() + b"\t\t")
            shown = _until(terminal, expected)
            assert all(word in shown for word in expected), (line, shown)
            os.write(terminal, b"\x15")  # the line is empty again; ^C would take what comes next with it
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def _until(terminal: int, expected: list[str]) -> str:
    """What the terminal shows after the line of dashes, until all words are there or ten seconds have passed."""
    shown, end = "", time.monotonic() + 10
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
        parts = re.split(r"\n-{8}\r?\n", shown)
        if len(parts) > 1 and all(word in parts[-1] for word in expected):
            return parts[-1]
    return shown


@pytest.mark.needs("mandoc")
def test_the_manual_page() -> None:
    page = ROOT / "data/share/man/man1/x86tables.1"
    assert page.read_text() == output("completion", "man"), "make docs"
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True)
    assert [line for line in lint.stdout.splitlines() if "missing date" not in line] == []  # the version says it
    shown = subprocess.run(["mandoc", "-T", "ascii", page], capture_output=True, text=True, check=True).stdout
    text = re.sub(r".\x08", "", shown)
    for name in names():
        assert f"\n   {name}\n" in text
        for action in parser(name)._actions:
            assert all(flag in text for flag in action.option_strings if flag not in ("-h", "--help"))
