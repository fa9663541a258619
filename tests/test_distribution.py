"""What is published: a source archive that can be tested, a wheel of the package alone, the same bytes each time."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from flit_core import buildapi
from packaging.requirements import Requirement

import x86tables

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = ("pyproject.toml", "README.md", "LICENSE", "x86tables", "data")


def sources() -> list[str]:
    """What the archive is made of, as pyproject.toml names it."""
    return [*BUILD, *(name.rstrip("/") for name in PROJECT["tool"]["flit"]["sdist"]["include"])]


def built(folder: Path, umask: int, age: int, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """The source archive and the wheel, made in a copy of the checkout in that folder, `age` seconds ago."""
    previous = os.umask(umask)
    try:
        for name in sources():
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, folder / name, ignore=shutil.ignore_patterns("target"), copy_function=shutil.copy
                )
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        for path in folder.rglob("*"):
            os.utime(path, (time.time() - age,) * 2)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        archive, wheel = buildapi.build_sdist("dist"), buildapi.build_wheel("dist")
    finally:
        os.umask(previous)
    return (folder / "dist" / archive).read_bytes(), (folder / "dist" / wheel).read_bytes()


def test_two_builds_have_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the folder, the modes and the times of the files are."""
    assert built(tmp_path / "one", 0o022, 0, monkeypatch) == built(tmp_path / "other", 0o077, 86400, monkeypatch)


def test_what_the_archive_and_the_wheel_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path / "copy", 0o022, 0, monkeypatch)
    (archive,), (wheel,) = (tmp_path / "copy/dist").glob("*.tar.gz"), (tmp_path / "copy/dist").glob("*.whl")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    for name in (
        "tests/cli.py",
        "tests/images/linux.core",
        "tests/hostile/cases.txt",
        "Makefile",
        ".ci/packages",
        "LICENSE",
    ):
        assert name in held
    with zipfile.ZipFile(wheel) as package:
        names = package.namelist()
        said = package.read(f"x86tables-{x86tables.__version__}.dist-info/METADATA").decode()
    info = f"x86tables-{x86tables.__version__}.dist-info/"
    page = f"x86tables-{x86tables.__version__}.data/data/share/man/man1/x86tables.1"
    assert page in names
    assert all(name.startswith(("x86tables/", info, page)) and "__pycache__" not in name for name in names)
    assert {"x86tables/py.typed", "x86tables/prove/overflow.S", f"{info}licenses/LICENSE"} <= set(names)
    assert sum(name.startswith("x86tables/json_schemas/") for name in names) == len(
        list((ROOT / "x86tables/json_schemas").glob("*.json"))
    )
    assert "\nLicense-Expression: MIT\n" in said and "\nClassifier: License" not in said


def test_every_module_of_the_wheel_is_imported_without_what_stands_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path / "copy", 0o022, 0, monkeypatch)
    (wheel,) = (tmp_path / "copy/dist").glob("*.whl")
    script = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import x86tables
for module in pkgutil.walk_packages(x86tables.__path__, "x86tables."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
beside = {"differential", "tests", "benchmarks"} & sys.modules.keys()
ours = [m for n, m in sys.modules.items() if n.startswith("x86tables") and sys.argv[1] not in m.__file__]
sys.exit(f"{beside} {ours}" if beside or ours else 0)
"""
    subprocess.run([sys.executable, "-I", "-c", script, str(wheel)], check=True, cwd=tmp_path)


def test_what_ci_installs_is_what_the_project_asks_for() -> None:
    """`.ci/requirements.txt` has each package of the extras in a version that fits, by hash; else run `.ci/lock`."""
    text = (ROOT / ".ci/requirements.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.M))
    assert pinned.keys() == set(re.findall(r"^([a-z0-9-]+)==[^\n]*\\\n    --hash=sha256:", text, re.M))
    project, wanted = PROJECT["project"], [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    for extra in project["optional-dependencies"].keys() - {"bench"}:
        wanted += project["optional-dependencies"][extra]
    for each in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", each.name).lower()
        assert name == "x86tables" or each.specifier.contains(pinned[name]), f"{each}: run .ci/lock"


def test_what_readme_shows_works_without_an_extra() -> None:
    """README.md's blocks, but for Bochs, in a process that cannot import the packages of the extras."""
    assert {Requirement(each).name for each in PROJECT["project"]["dependencies"]} == {"construct", "msgspec"}
    extras = [
        "elftools",
        "bochscpu",
        "pyderust",
        "iced_x86",
        "qemu",
        "numpy",
        "tqdm",
        "zstandard",
        "cramjam",
        "lzallright",
    ]
    script = f"""
import sys
sys.modules.update(dict.fromkeys({extras}))
import pytest
sys.exit(pytest.main(["-p", "no:xdist", "-p", "no:cacheprovider", "tests/test_readme.py::test_document[README.md]"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
