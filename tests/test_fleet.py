"""check of many images: a line each in the order given, over processes; one that is bad is one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import IMAGES, call, fitting, refused

from x86tables import api, fleet
from x86tables.fleet import Summary, summarize, summarize_all

LINUX, OVMF, GRUB = (str(IMAGES / f"{name}.core") for name in ("linux", "ovmf", "grub"))


def test_a_line_each_in_the_order_given(tmp_path: Path) -> None:
    (bad := tmp_path / "bad.core").write_bytes(Path(LINUX).read_bytes()[:100])
    for jobs in (1, 3):
        status, text, err = call("check", OVMF, bad, LINUX, GRUB, "--jobs", jobs)
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert (status, err) == (2, "")
        assert [line.partition(" ")[0] for line in lines[:4]] == [OVMF, str(bad), LINUX, GRUB]
        assert lines[0].startswith(f"{OVMF} triple-fault 1 CPU, 1 error: #DF cannot be delivered")
        assert lines[1].startswith(f"{bad} not judged ")
        assert lines[2] == f"{LINUX} survives 2 CPUs: the #DF handler runs on IST1"
        assert lines[3].startswith(f"{GRUB} not-applicable 1 CPU: ")
        assert lines[5:] == ["4 images", "1 triple-fault", "1 not judged", "1 survives", "1 not-applicable"]


def test_a_document_a_line(tmp_path: Path) -> None:
    status, text, _ = call("check", LINUX, tmp_path, OVMF, "--format", "jsonl", "--jobs", "2", "--scenario", "all")
    first, second, third = text.splitlines()
    assert status == 2
    assert fitting("check", first) == json.loads(call("check", LINUX, "--format", "json", "--scenario", "all")[1])
    assert fitting("check", third)["verdict"] == "triple-fault"
    assert json.loads(second).keys() == {"schema", "image", "error"} and json.loads(second)["image"]["path"] == str(
        tmp_path
    )
    alone = call("check", LINUX, "--format", "jsonl", "--scenario", "all")[1]
    assert json.loads(alone) == json.loads(first) and alone.count("\n") == 1


def test_options_that_are_for_one_image() -> None:
    assert refused("check", LINUX, OVMF, "--format", "json").startswith("--format json is for one image: jsonl ")
    assert refused("check", LINUX, OVMF, "--cpu", "0") == "--cpu is for one image; 2 are given"
    assert refused("check", LINUX, OVMF, "--stack", "0") == "--stack is for one image; 2 are given"
    assert refused("check", LINUX, OVMF, "--jobs", "x").startswith("--jobs: 'x' is not a number")


def test_from_python() -> None:
    found = summarize(LINUX, judging={"scenarios": ["current-stack"]})
    assert found.replace(reason="") == Summary(LINUX, 0, "survives", "", ("survives", "survives"))
    assert [one.status for one in summarize_all([LINUX, OVMF, "nothing"], 2)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("ends", "why"),
    [(lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"), (lambda: time.sleep(30), "no result within 1 seconds")],
)
def test_an_image_that_ends_its_process(ends: object, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = api.open

    def opened(path: str, **options: object) -> object:
        if path == OVMF:
            ends()  # type: ignore[operator]
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "open", opened)
    monkeypatch.setattr(fleet, "SECONDS", 1)
    first, second, third = summarize_all([LINUX, OVMF, GRUB], 2)
    assert (first.status, third.status) == (0, 1)
    assert (second.status, second.error) == (70, f"{OVMF}: the process that judged it ended: {why}")


@pytest.mark.needs("distributed")
def test_past_one_machine(tmp_path: Path) -> None:
    """examples/fleet.py on a local cluster, with 200 images, one of them bad."""
    kinds = [LINUX, OVMF, GRUB, str(IMAGES / "seabios.core")]
    names = []
    for number in range(200):
        names.append(tmp_path / f"{number:03}.core")
        names[-1].symlink_to(kinds[number % 4])
    names[7].unlink()
    script = Path(__file__).parent.parent / "examples/fleet.py"
    run = subprocess.run([sys.executable, str(script), *map(str, names)], capture_output=True, text=True, timeout=120)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr
    assert lines[0].startswith(f"{names[0]}: survives: ") and lines[7].startswith(f"{names[7]}: not judged: ")
    counts = "99 not-applicable, 50 survives, 50 triple-fault, 1 not judged"
    assert lines[-1] == f"200 images: {counts}" and len(lines) == 201
