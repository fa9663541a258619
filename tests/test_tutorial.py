"""docs/overflow.md, followed word by word in a fresh directory: its files written, its commands run in a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/overflow.md").read_text()


def pattern(expected: str) -> str:
    """What output may be: a line of dots stands for lines, dots within one for anything, a space for several."""
    lines = (re.escape(re.sub(" +", " ", line)).replace(r"\.\.\.", ".*?") + "\n" for line in expected.splitlines())
    return "".join("(?:.*\n)*" if line == ".*?\n" else line for line in lines)


@pytest.mark.needs("gcc", "as", "ld", "qemu-system-x86_64", "bochscpu")
def test_word_by_word(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (program := tmp_path / "bin/x86tables").parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m x86tables "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment.pop("COLUMNS", None)  # readline has put it into the process's own
    folder, commands = tmp_path, 0
    for kind, title, block in re.findall(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```', TEXT, re.M | re.S):
        if title:
            (folder / title).write_text(block)
        if kind != "console":
            continue
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            commands += 1
            if command.startswith("cd "):
                folder /= command.removeprefix("cd ")
                continue
            run = subprocess.run(
                command, shell=True, cwd=folder, env=environment, timeout=60, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            shown = re.sub(" +", " ", run.stdout.replace("\r", ""))
            assert re.fullmatch(pattern(expected), shown), f"$ {command}\n{shown}"
    assert commands == TEXT.count("\n$ ") > 8
