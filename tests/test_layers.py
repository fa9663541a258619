"""The order of modules, read from CONTRIBUTING.md: imports point upwards, and the quick paths stay light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import x86tables

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "x86tables"


def house() -> dict[str, bool]:
    """Module or folder of the list, in order -> whether it is there already."""
    block = re.search(r"^```house\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert block
    rows = [line.split(maxsplit=1) for line in block[1].splitlines()]
    return {name: not why.startswith("(to come)") for name, why in rows}


HOUSE = house()
ORDER = list(HOUSE)
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The line of the house that `path` belongs to: its own, or that of its folder."""
    first = path.relative_to(PACKAGE).parts[0]
    return first if first.endswith(".py") else first + "/"


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every import of a module, wherever it stands: (absolute module, name or "")."""
    inside = ("x86tables", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from ((module, alias.name) for alias in node.names)


def target(module: str, name: str) -> Path | None:
    """The file of the package that an import reads; None for an import of something else."""
    if module.split(".")[0] != "x86tables":
        return None
    for dotted in (f"{module}.{name}", module):
        path = PACKAGE.joinpath(*dotted.split(".")[1:])
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
    raise AssertionError(f"{module}.{name} is not a file of the package")


def edges() -> Iterator[tuple[Path, Path]]:
    for path in FILES:
        for module, name in imports(path):
            # the package's own version is a constant that is there before any module of the package runs
            if name != "__version__" and (found := target(module, name)):
                yield path, found


def test_the_list_and_the_files_agree() -> None:
    rooms = {room(path) for path in FILES}
    there = {name for name, built in HOUSE.items() if built}
    assert sorted(rooms - HOUSE.keys()) == [], "not in CONTRIBUTING.md: give it a line where it belongs"
    assert sorted(there - rooms) == [], "in CONTRIBUTING.md, but there is no such file"
    assert sorted(rooms - there) == [], "built by now: take (to come) off its line in CONTRIBUTING.md"


def test_imports_point_upwards() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {found.relative_to(ROOT)}, which stands below it"
        for path, found in edges()
        if ORDER.index(room(found)) > ORDER.index(room(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycles() -> None:
    reads: dict[Path, set[Path]] = {path: set() for path in FILES}
    for path, found in edges():
        reads[path].add(found)
    while leaves := [path for path, found in reads.items() if not found & reads.keys()]:
        for leaf in leaves:
            del reads[leaf]
    assert not reads, f"these import one another: {', '.join(str(path.relative_to(ROOT)) for path in reads)}"


TWINS = {"Values"}  # in records.py: what mypy reads, and what runs


def test_no_two_classes_share_a_name() -> None:
    """One name is one thing, wherever in the package it is met; `differential` reads the package all the time."""
    places: dict[str, list[str]] = {}
    for path in (*FILES, *sorted((ROOT / "differential").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name not in TWINS:
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_only_schemas_imports_construct() -> None:
    importers = [path.name for path in FILES if any(m.split(".")[0] == "construct" for m, _ in imports(path))]
    assert set(importers) <= {"schemas.py"}


# What a command may import: modules of ours, as many as it has now and two more
LINUX = str(ROOT / "tests/images/linux.core")
BUDGETS = {
    "--help": (5, []),
    "explain": (44, ["IDT004"]),
    "decode": (27, ["0x00af9b000000ffff"]),
    "dump": (40, [LINUX]),
    "check": (59, [LINUX]),
    "trace": (44, [LINUX, "--vector", "14"]),
}
# Modules that cost a short command more than they give it; the last four are for --format json and compressed files
HEAVY = ["construct", "numpy", "dataclasses", "typing", "inspect", "importlib.metadata", "pathlib", "subprocess"]
HEAVY += ["contextlib", "heapq", "shutil", "json", "tempfile", "lzma", "gzip"]


def loaded(statement: str) -> list[str]:
    """The modules that a program has loaded; -I and -S keep out what the environment imports by itself."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stderr.splitlines()[-1].split()


def test_public_names_are_imported_when_they_are_asked_for() -> None:
    assert [name for name in loaded("import x86tables") if name.startswith("x86tables")] == ["x86tables"]
    assert sorted(x86tables._HOME) == sorted(x86tables.__all__)
    for name in x86tables.__all__:
        assert getattr(x86tables, name) is getattr(sys.modules[f"x86tables.{x86tables._HOME[name]}"], name)
    with pytest.raises(AttributeError, match="no attribute 'Gates'"):
        _ = x86tables.Gates


def test_the_package_is_light() -> None:
    assert not set(HEAVY) & set(loaded("import x86tables"))


@pytest.mark.parametrize("command", BUDGETS)
def test_a_command_imports_what_it_needs(command: str) -> None:
    """`make bench` has the times: a module costs a short command about a hundredth of an empty Python."""
    most, arguments = BUDGETS[command]
    modules = loaded(f"from x86tables.commands import main; assert main({[command, *arguments]}) == 0")
    assert not set(HEAVY) & set(modules)
    ours = [module for module in modules if module.split(".")[0] == "x86tables"]
    assert len(ours) <= most, ours
    others = [module for module in ours if module.startswith("x86tables.commands.") and "._" not in module]
    assert others in ([], [f"x86tables.commands.{command}"])
