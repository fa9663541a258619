"""The `needs` marker: a test without its program is skipped with a cure, and fails where everything is required."""

import subprocess
import sys
from pathlib import Path

import conftest
import pytest

HERE = Path(__file__).parent
NEEDY = """
import pytest

@pytest.mark.needs("sh-that-nobody-has")
def test_needy():
    pass
"""


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_missing_program_is_named_with_its_package(tmp_path: Path, required: str, outcome: str) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/packages").write_text("# package program why\nnobody-package sh-that-nobody-has because\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/conftest.py").write_text((HERE / "conftest.py").read_text())
    (tmp_path / "tests/test_needy.py").write_text(NEEDY)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rsE", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "tests"],
        cwd=tmp_path,
        env={"X86TABLES_REQUIRE_ALL": required},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome in run.stdout
    assert "apt-get install nobody-package" in run.stdout


def test_needs_refuses_a_program_that_no_package_is_known_for() -> None:
    with pytest.raises(KeyError):
        conftest.missing("no-such-program")


def test_every_package_has_a_program_and_a_reason() -> None:
    for line in (conftest.ROOT / ".ci/packages").read_text().splitlines():
        assert line.startswith("#") or len(line.split(maxsplit=2)) == 3, line
