"""check --format sarif: valid SARIF 2.1.0, with what a code-scanning service asks for besides."""

import json
import lzma
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from x86tables import commands
from x86tables.checks import RULES
from x86tables.commands import main
from x86tables.delivery.scenarios import SCENARIOS
from x86tables.readers import read_symbols
from x86tables.render import sarif

HERE = Path(__file__).parent
ROOT = HERE.parent
ACTION = (ROOT / "action.yml").read_text()
# The standard's own schema, as the MIT-licensed SARIF packages of Microsoft carry it; and a stricter one of ours, for
# the part of the format that we write
PUBLISHED = json.loads(lzma.decompress((HERE / "sarif-2.1.0-rtm.5.json.xz").read_bytes()).decode("utf-8-sig"))
SCHEMA = json.loads((HERE / "sarif.schema.json").read_text())
IMAGES = ["images/linux.core", "images/ovmf.core", "images/grub.core", "images/linux32.core", "logs/triple.core.xz"]


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and the one run of the log, which is valid."""
    status = main(["check", *arguments, "--format", "sarif"])
    document = json.loads(capsys.readouterr().out)
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft7Validator)
    jsonschema.validate(document, PUBLISHED, cls=jsonschema.Draft4Validator)
    (run,) = document["runs"]
    return status, run


@pytest.mark.parametrize("image", IMAGES)
def test_real_images(capsys: pytest.CaptureFixture[str], image: str) -> None:
    """Valid; every result names its rule twice in agreement, a place and a fingerprint; findings are those of JSON."""
    status, run = checked(capsys, str(HERE / image))
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["region"]["startLine"] == 1
        uri = place["physicalLocation"]["artifactLocation"]["uri"]
        assert not uri.startswith(("/", "..", "file:")) and uri.endswith(Path(image).name)
        assert result["partialFingerprints"]
    prints = [str(result["partialFingerprints"]) for result in run["results"]]
    assert len(set(prints)) == len(prints)
    assert main(["check", str(HERE / image), "--format", "json"]) == status
    cpus = json.loads(capsys.readouterr().out)["cpus"]
    wanted = {(finding["rule"], finding["where"]) for cpu in cpus for finding in cpu["findings"]}
    places = {(r["ruleId"], r["locations"][0]["logicalLocations"][0]["name"]) for r in run["results"]}
    assert {place for place in places if place[0] not in SCENARIOS} == wanted
    assert run["properties"]["verdicts"] == {f"CPU {cpu['cpu']}": cpu["verdict"] for cpu in cpus}


def test_a_kernel_that_shuts_down(capsys: pytest.CaptureFixture[str]) -> None:
    status, run = checked(capsys, str(HERE / "logs/triple.core.xz"))
    found = {result["ruleId"]: result for result in run["results"]}
    assert status == 1
    assert found["stack-overflow"]["level"] == found["IDT004"]["level"] == "error"
    assert found["stack-overflow"]["message"]["text"].startswith("CPU 0: triple-fault: ")
    assert found["IDT004"]["partialFingerprints"] == {"x86tables/v1": "IDT004:idt[8].ist:0"}


def test_cpus_with_the_same_finding_are_one_result(capsys: pytest.CaptureFixture[str]) -> None:
    _, run = checked(capsys, str(HERE / "images/linux.core"), "--scenario", "all")
    texts = [result["message"]["text"].partition(": ")[2] for result in run["results"]]
    where = [result["locations"][0]["logicalLocations"][0]["name"] for result in run["results"]]
    assert len(set(zip(texts, where, strict=True))) == len(texts)


def test_every_rule_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, run = checked(capsys, str(HERE / "images/linux.core"))
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert set(rules) == {rule.id for rule in RULES} | {*SCENARIOS, sarif.NEIGHBOUR}
    for rule in RULES:
        told = rules[rule.id]
        assert told["shortDescription"]["text"] == rule.title
        assert rule.sections["Why"] in told["help"]["text"] and rule.sections["Fix"] in told["help"]["markdown"]
        assert told["defaultConfiguration"]["level"] == rule.severity
    assert all(len(rule["shortDescription"]["text"]) <= 1024 for rule in rules.values())


def test_what_was_not_checked_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, run = checked(capsys, str(HERE / "logs/triple.core.xz"))
    (invocation,) = run["invocations"]
    assert any(note["associatedRule"]["id"] == "SYS001" for note in invocation["toolExecutionNotifications"])


def places(run: dict[str, Any]) -> dict[str, tuple[str, int, list[str]]]:
    """Rule -> file, line and the logical places of its first result."""
    found: dict[str, tuple[str, int, list[str]]] = {}
    for result in run["results"]:
        (place,) = result["locations"]
        file = place["physicalLocation"]["artifactLocation"]["uri"]
        line = place["physicalLocation"]["region"]["startLine"]
        found.setdefault(result["ruleId"], (file, line, [one["name"] for one in place["logicalLocations"]]))
    return found


def test_a_finding_is_at_the_source_line_of_the_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """Where debugging information has it; a gate that is missing has no handler, and the table a symbol."""
    image = HERE / "logs/triple.core.xz"
    _, run = checked(capsys, str(image), "--symbols", str(HERE / "logs/triple.elf.xz"))
    source = (HERE / "logs/kernel.asm").read_text().splitlines()
    found = places(run)
    assert found["IDT004"] == ("kernel.asm", source.index("double_fault:") + 2, ["idt[8].ist", "double_fault"])
    assert found["stack-overflow"] == (*found["IDT004"][:2], ["stack-overflow", "double_fault"])
    assert found["IDT019"] == (sarif.relative(str(image)), 1, ["idt[2].p", "idt"])


def test_a_finding_without_source_lines_has_a_symbol(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nm = tmp_path / "kernel.map"
    symbols = read_symbols(str(HERE / "logs/triple.elf.xz"))
    nm.write_text("".join(f"{address:016x} T {name}\n" for address, name in symbols.pairs))
    image = HERE / "logs/triple.core.xz"
    _, run = checked(capsys, str(image), "--symbols", str(nm))
    assert places(run)["IDT004"] == (sarif.relative(str(image)), 1, ["idt[8].ist", "double_fault"])


DECLARED = """\
[gdt]
segments = [
    "kernel_code",
    { name = "odd", kind = "kernel_code", d_b = true },
    "kernel_data",
]

[cpu]
stack = { bottom = 0x101000, size = 0x1000 }
ist1 = { name = "double_fault", bottom = 0x100000, size = 0x1000 }
ist2 = { name = "crooked", top = 0x10fff9 }

[idt]
#DF = { handler = "df", ist = "double_fault" }
"3" = { handler = 0x200000, dpl = 3 }
"#PF" = { handler = "pf", ist = "crooked" }

[idt.32]
handler = "odd"
segment = "odd"
"""


def test_a_finding_is_at_the_line_of_its_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a gate, its key, or the comment that a key without quotes is; of a segment, a stack, a problem, theirs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "kernel.toml").write_text(DECLARED)
    _, run = checked(capsys, "boot/kernel.toml")
    lines = DECLARED.splitlines()

    def at(text: str) -> int:
        return next(number for number, line in enumerate(lines, 1) if line.startswith(text))

    found = {rule: place[:2] for rule, place in places(run).items()}
    assert found["IDT001"] == ("boot/kernel.toml", at("#DF"))
    assert found["IDT019"] == ("boot/kernel.toml", at("[idt]"))
    assert found["GDT008"] == ("boot/kernel.toml", at('    { name = "odd"'))
    assert found["unguarded-neighbour"] == ("boot/kernel.toml", at("stack"))
    assert found["STK004"] == ("boot/kernel.toml", at("ist2"))


def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Relative to where the command runs, as the repository of a workflow has it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    assert sarif.relative(str(tmp_path / "build" / "my kernel.core")) == "build/my%20kernel.core"
    assert sarif.relative("build/kernel.core") == "build/kernel.core"
    assert sarif.relative("/elsewhere/kernel.core") == "kernel.core"
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "trap.c").touch()
    assert sarif.relative("/build/of/container/arch/trap.c") == "arch/trap.c", "compiled elsewhere, and known here"
    assert sarif.relative("../../arch/trap.c") == "arch/trap.c"
    assert sarif.relative("/build/arch/other.c") == "other.c"


def test_the_schema_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """The validation above means something: a result without a message, an unknown property, a level of our own."""
    assert main(["check", str(HERE / "logs/triple.core.xz"), "--format", "sarif"]) == 1
    text = capsys.readouterr().out
    for old, new in (
        ('"message"', '"massage"'),
        ('"level": "error"', '"level": "fatal"'),
        ('"startLine": 1', '"startLine": 0'),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(text.replace(old, new, 1)), SCHEMA, cls=jsonschema.Draft7Validator)


def test_the_workflow_calls_what_there_is() -> None:
    """The parsers take every x86tables command of the example, and the action what is given to it."""
    text = (ROOT / "examples/github-workflow.yml").read_text()
    calls = re.findall(r"^ +(?:- )?run: (x86tables .*)$", text, re.MULTILINE)
    assert [call.split()[1] for call in calls] == ["prove", "link", "log"]
    for call in calls:
        _, name, *arguments = shlex.split(call.partition(">")[0])
        commands.parser(name).parse_args(arguments)
    assert "upload-sarif" in text and "security-events: write" in text
    (given,) = re.findall(r"uses: ./third_party/x86tables\n +with:\n((?: +\w+: .*\n)+)", text)
    assert set(re.findall(r"(\w+):", given)) <= set(re.findall(r"^  (\w+):$", ACTION, re.MULTILINE))


@pytest.mark.parametrize(("name", "status", "kept"), [("linux.core", 0, True), ("ovmf.core", 1, True), ("", 2, False)])
def test_the_action_keeps_what_there_is(name: str, status: int, kept: bool, tmp_path: Path) -> None:
    """Its script with a program in the place where it installs one; an image that cannot be read leaves no file."""
    script = textwrap.dedent(ACTION.rpartition("      run: |\n")[2])
    program = tmp_path / "x86tables/bin/x86tables"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m x86tables "$@"\n')
    program.chmod(0o755)
    variables = os.environ | {
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "IMAGE": str(HERE / "images" / name),
        "SYMBOLS": "",
        "ARGUMENTS": "--ignore 'GDT006' --cpu 0",
        "SARIF": str(tmp_path / "found.sarif"),
    }
    run = subprocess.run(["bash", "-e", "-c", script], env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == status, run.stderr
    assert (tmp_path / "found.sarif").exists() == kept
    assert not (tmp_path / "found.sarif.new").exists()
    if kept:
        assert json.loads((tmp_path / "found.sarif").read_text())["version"] == "2.1.0"
        assert (tmp_path / "output").read_text() == f"sarif={tmp_path / 'found.sarif'}\n"
        assert run.stdout.count("\nCPU ") == 1, "and a person reads the same"


def test_the_hook_calls_what_there_is() -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    (entry,) = re.findall(r"^  entry: x86tables (\w+)$", text, re.MULTILINE)
    (pattern,) = re.findall(r"^  files: (\S+)", text, re.MULTILINE)
    assert entry in commands.names()
    assert re.search(pattern, "boot/kernel.toml") and not re.search(pattern, "pyproject.toml")
