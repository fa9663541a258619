"""A short run of the fuzzer over every reader; `make fuzz` runs it for long."""

from pathlib import Path

from fuzz import SPECIMENS, Fuzz, Guided


def test_damaged_files(tmp_path: Path) -> None:
    fuzz = Fuzz(tmp_path)
    wrong = {number: fault for number in range(20 * len(SPECIMENS)) if (fault := fuzz.case(number))}
    assert not wrong


def test_undamaged_files(tmp_path: Path) -> None:
    fuzz = Fuzz(tmp_path)
    fuzz.good = {name: data + b"" for name, data in fuzz.good.items()}
    assert not any("exit 2" in fuzz.case(number) for number in range(len(SPECIMENS)))


def test_guided_by_coverage(tmp_path: Path) -> None:
    fuzz = Guided(tmp_path)
    assert not any(map(fuzz.case, range(4 * len(SPECIMENS))))
    assert len(fuzz.steps) > 1000 and any(len(starts) > 2 for starts in fuzz.starts.values())
