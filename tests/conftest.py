"""What all tests share: programs that only some machines have, and how long Hypothesis may search."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
REQUIRE_ALL = os.environ.get("X86TABLES_REQUIRE_ALL", "") not in ("", "0")

# A slow machine is no failure. CI draws the same examples every time, so that a red build is red again at home.
SLOW = [HealthCheck.too_slow]
settings.register_profile("local", deadline=None, suppress_health_check=SLOW)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if REQUIRE_ALL or os.environ.get("CI") else "local")

# Tests feed lies about sizes to every reader: one that believes them shall fail, not take the machine down with it.
MEMORY = 6 << 30

os.environ["X86TABLES_DEBUG"] = "1"  # an unforeseen error shows where it is
for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):  # what is printed does not depend on whose terminal this is
    os.environ.pop(name, None)

EXTRAS = {"iced_x86": "redzone", "bochscpu": "bochs", "distributed": "check", "mkdocs": "docs"}


def programs() -> dict[str, str]:
    """Program, or absolute path of a file -> the Debian package that brings it; read from `.ci/packages`."""
    lines = (ROOT / ".ci/packages").read_text().splitlines()
    rows = [line.split()[:2] for line in lines if line and not line.startswith("#")]
    return {program: package for package, names in rows for program in names.split(",")}


def missing(need: str) -> str:
    """What to install so that `need` (a program, the path of a file, a Python module) is there; "" when it is."""
    if need in EXTRAS:
        return "" if find_spec(need) else f"pip install '.[{EXTRAS[need]}]'"
    package = programs()[need]
    there = os.path.exists(need) if need.startswith("/") else shutil.which(need)
    return "" if there else f"apt-get install {package}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*what): programs outside of pip, files of Debian packages, or optional Python modules"
    )
    if sys.platform == "linux":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, hard))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose needs are not met, and say what to install; with X86TABLES_REQUIRE_ALL=1 fail it instead."""
    for need in [need for marker in item.iter_markers("needs") for need in marker.args]:
        if cure := missing(need):
            if REQUIRE_ALL:
                pytest.fail(f"{need} is not there and X86TABLES_REQUIRE_ALL is set: {cure}", pytrace=False)
            pytest.skip(f"{need} is not there: {cure}")
