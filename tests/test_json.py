"""What every command prints as JSON: it fits the schemas that the wheel has, and they are what the declarations say."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import IMAGES, SCHEMAS, call, fitting, validator

from x86tables.documents import Document, described
from x86tables.machine.symbols import Symbols
from x86tables.prove.qemu import Ending
from x86tables.qemulog import chains, entries
from x86tables.render.json import prove
from x86tables.render.json.__main__ import schemas

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "tests/logs"
TRIPLE = [LOGS / "triple.core.xz", "--symbols", LOGS / "triple.elf.xz"]


def test_the_schemas_are_current() -> None:
    published = {path.name: path.read_text() for path in SCHEMAS.iterdir()}
    assert published == schemas(), "stale: make docs"


@pytest.mark.parametrize("name", schemas())
def test_a_schema_is_one(name: str) -> None:
    found = validator(name.removesuffix(".schema.json"))
    found.check_schema(found.schema)
    assert not found.is_valid({}) and not found.is_valid({"schema": 1})


def test_descriptions_are_of_fields() -> None:
    wrong = {
        kind.__name__: names
        for kind in Document._kinds.values()
        if (names := described(kind)[1].keys() - {name.rstrip("_") for name in kind._fields})
    }
    assert wrong == {}


def images() -> Iterator[tuple[str, list[object]]]:
    """Every image and declaration of the repository, with the options that belong to it."""
    for path in sorted(IMAGES.glob("*.core*")):
        names = path.with_name(path.name.split(".")[0].removesuffix("-tables") + ".map")
        yield path.name, [path, *(["--symbols", names] if names.exists() else [])]
    yield "triple", TRIPLE
    yield "triple.elf", [LOGS / "triple.elf.xz"]
    for table in ("idt", "gdt"):
        place = ["--base", "0x7456000", f"--{table}", "0x7456018,0xfff"]
        yield f"ovmf-{table}.bin", [IMAGES / f"ovmf-{table}.bin", *place]
    for path in sorted((ROOT / "examples").glob("*.toml")):
        yield path.name, [path]


@pytest.mark.parametrize("image", [words for _, words in images()], ids=[name for name, _ in images()])
def test_commands_on_images(image: list[object]) -> None:
    for command in (
        ["dump"],
        ["check", "--scenario", "all"],
        ["trace", "--vector", "14", "--cr2", "0xdeadbeef", "--error-code", "2"],
        ["decode", "--as", "error-code", "0x42", "--in"],
        ["decode", "--as", "error-code", "0x10", "--in"],
        ["decode", "--as", "page-fault-error", "0x2", "--address", "0xffffffff90a03e98", "--in"],
    ):
        status, out, err = call(*command, *image, "--format", "json")
        if out:
            fitting(command[0], out)
        else:
            assert status == 2 and command[0] == "trace" and "no CPU is in 64-bit mode" in err


@pytest.mark.needs("bochscpu")
@pytest.mark.parametrize("name", ["linux.core", "triple", "seabios.core", "two_cpus.toml"])
def test_prove(name: str) -> None:
    image = dict(images())[name]
    fitting("prove", call("prove", *image, "--on", "bochs", "--format", "json")[1])


@pytest.mark.parametrize("name", sorted(path.name for path in LOGS.glob("*.log.xz")))
def test_logs(name: str) -> None:
    fitting("log", call("log", LOGS / name, "--format", "json")[1])
    fitting("log", call("log", LOGS / name, "--in", *TRIPLE, "--format", "json")[1])


def test_a_guest() -> None:
    log = chains.read_log(entries.read(str(LOGS / "triple.log.xz")))
    document = prove.guest("kernel", Ending("triple-fault", "why", log, None, b"\xff", ""), Symbols(), "QEMU")
    assert fitting("prove", json.dumps(document))["log"]["outcome"] == "triple-fault"


@pytest.mark.parametrize("value", ["0x00af9b000000ffff", "0x10", "0x2", "0x80000800018e1080"])
@pytest.mark.parametrize("kind", ["descriptor", "selector", "page-fault-error", "gate", "tss", "frame", "tss32"])
def test_values(kind: str, value: str) -> None:
    status, out, _ = call("decode", "--as", kind, value, "--format", "json")
    assert status == 2 or fitting("decode", out)["kind"]


def test_explanations() -> None:
    assert len(fitting("explain", call("explain", "--format", "json")[1])["rules"]) > 40


@pytest.mark.parametrize("name", ["double_fault", "two_cpus"])
def test_tables(name: str, tmp_path: Path) -> None:
    assert call("build", ROOT / f"examples/{name}.toml", "-o", tmp_path, "--emit", "json")[0] == 0
    assert fitting("tables", (tmp_path / "tables.json").read_text())["tables"]
