"""What every command shares: the overview, and how it ends when something is wrong with its surroundings or with us."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import specimens
from cli import IMAGES, call, output, refused

from x86tables import commands
from x86tables.commands import BUG, LONGEST, main
from x86tables.machine.files import File
from x86tables.qemulog import entries

KERNEL = next((Path(__file__).parent.parent / "examples").glob("**/kernel.toml"))


def shell(line: str, *argv: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a shell's line; `$X` is the program, `$1` an argument."""
    variables = os.environ | {"X": f"{sys.executable} -m x86tables"}
    run = subprocess.run(["bash", "-c", line, "bash", *map(str, argv)], capture_output=True, env=variables, timeout=60)
    return run.returncode, run.stdout.decode(), run.stderr.decode()


@pytest.mark.parametrize("name", commands.names())
def test_the_overview_has_the_first_line_of_each_docstring(name: str) -> None:
    """It is read from the source, without importing the command."""
    first = commands.module(name).__doc__.splitlines()[0]
    assert commands.summary(name) == first
    assert f"  {name:<10} {first}\n" in output("--help")


# Standard streams


@pytest.mark.parametrize("command", ["--help", "--version", "dump $1", "check $1", "decode 0x00af9b000000ffff"])
def test_standard_output_is_closed(command: str) -> None:
    status, _, err = shell(f"$X {command} >&-", IMAGES / "linux.core")
    assert (status, err) == (2, "x86tables: standard output is closed\n")


@pytest.mark.parametrize("command", ["decode -", "log -"])
def test_standard_input_is_closed(command: str) -> None:
    assert shell(f"$X {command} <&-") == (2, "", "x86tables: standard input is closed\n")


def test_standard_error_is_closed() -> None:
    assert shell("$X dump none 2>&-") == (2, "", "")
    status, out, _ = shell("$X dump $1 2>&- <&-", IMAGES / "linux.core")
    assert status == 0
    assert out.startswith(f"{IMAGES / 'linux.core'}: ")


@pytest.mark.parametrize("command", ["--help", "dump $1", "check $1 --format json"])
def test_no_room_for_standard_output(command: str) -> None:
    status, _, err = shell(f"$X {command} >/dev/full", IMAGES / "linux.core")
    assert (status, err) == (2, "x86tables: standard output: No space left on device\n")


def test_no_room_for_a_generated_file(tmp_path: Path) -> None:
    status, out, err = shell("ulimit -f 0; trap '' XFSZ; $X build $1 -o $2 --emit c", KERNEL, tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith(f"x86tables: {tmp_path}/") and err.endswith(": File too large\n")


# Names and strings from outside


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    folder = os.fsdecode(bytes(tmp_path) + b"/\xff\xe9")
    os.mkdir(folder)
    with open(f"{folder}/image.core", "wb") as file:
        file.write(specimens.core())
    shutil.copy(KERNEL, f"{folder}/kernel.toml")
    status, out, err = shell("cd $1/..; $X check $1/image.core --format sarif", folder)
    assert (status, err) == (1, "")
    assert json.loads(out)["runs"][0]["automationDetails"]["id"] == "x86tables/%FF%E9/image.core/"
    assert shell("$X build $1/kernel.toml -o $1 --emit c", folder)[::2] == (0, "")
    with open(f"{folder}/tables.h", encoding="ascii") as file:
        assert "xdcff" in file.readline(), "escaped"


def test_a_name_that_would_speak_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31mred\x07\x1b]0;title"
    path.write_bytes(specimens.core())
    shown = str(path).replace("\x1b", "\\x1b").replace("\x07", "\\x07")
    for command, *more in (["dump"], ["check"], ["extract", "-o", f"{path}.small"]):
        status, out, err = call(command, path, *more)
        assert status in (0, 1) and not err, err
        assert out.startswith(shown) and "\x1b" not in out and "\x07" not in out


def test_our_colours_are_not_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    from x86tables.render.lines import output

    output(["\x1b[1;31mloops\x1b[0m \x1b[8mhidden", "plain"])
    assert capsys.readouterr().out == "\x1b[1;31mloops\x1b[0m \\x1b[8mhidden\nplain\n"


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_when_there_is_colour(
    environment: dict[str, str], terminal: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from x86tables.render import lines

    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert lines.coloured("loops") == ("\x1b[1;31mloops\x1b[0m" if coloured else "loops")


@pytest.mark.parametrize(
    ("columns", "width"), [("20", 60), ("60", 60), ("80", 80), ("120", 100), ("", 100), ("x", 100)]
)
def test_width(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of dump and check fits from 60 columns on; colours take no place."""
    monkeypatch.setenv("COLUMNS", columns)
    for command in (["dump", "--all"], ["check", "--scenario", "all"]):
        for name in ("linux", "linux32", "xen"):
            plain = call(*command, IMAGES / f"{name}.core")[1]
            assert max(map(len, plain.splitlines())) <= width
            with monkeypatch.context() as patch:
                patch.setenv("FORCE_COLOR", "1")
                assert re.sub(r"\x1b\[[0-9;]*m", "", call(*command, IMAGES / f"{name}.core")[1]) == plain


LINUX = IMAGES / "linux.core"


@pytest.mark.parametrize(
    "words", [[], ["explain"], ["dump"], ["check", LINUX, "--scenario"], ["check", LINUX, "--select"]]
)
def test_a_long_string_makes_no_long_sentence(words: list[object]) -> None:
    sentence = refused(*words, "x" * 900_000)
    assert len(sentence) < LONGEST + 60
    assert "characters ...]" in sentence


def test_a_deep_baseline(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("[" * 100_000)
    sentence = refused("check", IMAGES / "linux.core", "--baseline", tmp_path / "deep")
    assert sentence.startswith(f"{tmp_path / 'deep'}: not a baseline")


def test_a_log_that_is_truncated_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it mapped, the process would die of SIGBUS."""
    path, lines = tmp_path / "log", entries.lines
    path.write_bytes(b"Servicing hardware INT=0x20\n" * 10_000)

    def first(source: File) -> Iterator[bytes]:
        for line in lines(source):
            yield line
            os.truncate(path, 100_000)

    monkeypatch.setattr(entries, "lines", first)
    assert refused("log", path).startswith(f"{path}: the file was truncated while it was read: it had 0x445c0 bytes")


# Unforeseen errors


def test_a_bug_is_one_sentence_and_status_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(args: object) -> int:
        raise KeyError("a\nb" * 2000)

    monkeypatch.setattr(commands.module("dump"), "run", wrong)
    monkeypatch.delenv("X86TABLES_DEBUG", raising=False)
    assert main(["dump", "image"]) == BUG == os.EX_SOFTWARE
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and len(err) < LONGEST + 80
    assert err.startswith("x86tables: this is a bug in x86tables (KeyError at test_commands.py:")
    assert "please report it" in err and "X86TABLES_DEBUG=1" in err
    monkeypatch.setenv("X86TABLES_DEBUG", "1")
    assert main(["dump", "image"]) == BUG
    assert "Traceback (most recent call last):\n" in capsys.readouterr().err


def test_no_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(args: object) -> int:
        raise MemoryError

    monkeypatch.setattr(commands.module("dump"), "run", wrong)
    assert main(["dump", "image"]) == 2
    assert capsys.readouterr().err == "x86tables: not enough memory\n"


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("name", commands.names())
def test_help_fits_the_terminal(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if len(line) > columns]
    said = " ".join(" ".join(lines).split())
    assert " ".join(commands.summary(name).split()) in said, "the paragraphs are broken anew, and whole"
