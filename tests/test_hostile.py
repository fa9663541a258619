"""Nasty files: each has its sentence, within two seconds, 200 MiB, and without a change to what was there.

A case is a line of `hostile/cases.txt`: a command line | its exit status | a part of what it prints. Small files stand
beside it; those of more than 10 KiB are made by a function, LARGE["name.ext"] of a module there.
"""

import resource
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "hostile"
SECONDS, MEMORY, SMALL = 2, 200 << 20, 10 << 10


def cases() -> list[tuple[str, int, str]]:
    lines = (FOLDER / "cases.txt").read_text().splitlines()
    rows = [[part.strip() for part in line.split("|", 2)] for line in lines if line and not line.startswith("#")]
    return [(command, int(status), sentence) for command, status, sentence in rows]


CASES = cases()
LARGE: dict[str, Callable[[], bytes]] = {
    name: make for path in FOLDER.glob("*.py") for name, make in runpy.run_path(str(path)).get("LARGE", {}).items()
}


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


@pytest.mark.parametrize(("command", "status", "sentence"), CASES, ids=[command for command, _, _ in CASES])
def test_hostile(tmp_path: Path, command: str, status: int, sentence: str) -> None:
    words = command.split()
    for word in words:
        if word in LARGE:
            (tmp_path / word).write_bytes(LARGE[word]())
    for path in FOLDER.iterdir():
        if path.name in command or path.suffix == ".toml":
            shutil.copy(path, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    argv = [sys.executable, "-m", "x86tables", *words]
    env = {"PYTHONPATH": str(FOLDER.parent.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, preexec_fn=limit, check=False
    )
    assert done.returncode == status, (done.stdout[-300:], done.stderr[-600:])
    shown = done.stderr if status == 2 else done.stdout
    assert sentence in " ".join(shown.split())
    if status == 2:
        assert done.stderr.startswith("x86tables: ") and done.stderr.count("\n") == 1 and len(done.stderr) < 600
    else:
        assert not done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_every_file_has_a_case() -> None:
    words = {word for command, _, _ in CASES for word in command.split()}
    kept = {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", ".pyc") and path.is_file()}
    assert sorted((kept | LARGE.keys()) - words) == ["cases.txt"]
    assert [path.name for path in FOLDER.iterdir() if path.name in kept and path.stat().st_size > SMALL] == []


def test_small_files_are_as_their_module_makes_them() -> None:
    for path in FOLDER.glob("*.py"):
        for name, make in runpy.run_path(str(path)).get("FILES", {}).items():
            assert (FOLDER / name).read_bytes() == make(), f"run: python {path}"
