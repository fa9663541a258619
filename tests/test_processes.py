"""Programs that `prove` starts: they end with it, and one that misbehaves is a sentence. QEMU is a script here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli import IMAGES, call, refused

from x86tables.errors import NotThere
from x86tables.prove import qemu as guest
from x86tables.prove import workers
from x86tables.prove.processes import exceptions_from_signals, running

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "examples/double_fault.toml"
ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
SLEEP = "\nimport time; time.sleep(60)"
Fake = Callable[..., Path]


@pytest.fixture(autouse=True)
def hangup() -> Iterator[None]:
    """SIGHUP as a terminal leaves it: under nohup it is ignored, and whatever is started ignores it too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Makes a qemu-system-x86_64 of Python code, the only one on PATH. `LOG` is the descriptor of its log."""

    def make(code: str, version: str = "print('QEMU emulator version 7.2.22')") -> Path:
        head = (
            f"#!{sys.executable} -S\nimport os, sys\nif sys.argv[1:] == ['--version']:\n    {version}\n    sys.exit()\n"
        )
        path = tmp_path / "bin" / guest.PROGRAM
        path.parent.mkdir()
        path.write_text(f"{head}LOG = int(sys.argv[-1].rpartition('/')[2])\n{code}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))
        return path

    yield make


def gone(process: int) -> bool:
    """Whether a process ends within a few seconds; a zombie that nobody waits for has ended."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def numbers(path: Path, count: int) -> list[int]:
    """The process numbers that were written to a file, once there are so many."""
    for _ in range(200):
        if path.exists() and len(found := path.read_text().split()) == count:
            return [int(one) for one in found]
        time.sleep(0.05)
    raise AssertionError(f"{path.name}: not {count} processes within 10 seconds")


def started(*argv: object, **environment: str) -> "subprocess.Popen[str]":
    """`x86tables ARGV`, or another Python program, in a process of its own."""
    command = [sys.executable, *map(str, argv)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


# QEMU ends with us


@linux_only
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("what", ["a configuration", "a guest"])
def test_qemu_does_not_outlive_prove(fake: Fake, tmp_path: Path, number: signal.Signals, what: str) -> None:
    noted, temporary = tmp_path / "noted", tmp_path / "temporary"
    temporary.mkdir()
    fake(f"open({str(noted)!r}, 'w').write(str(os.getpid()))" + SLEEP)
    words = [CONFIG] if what == "a configuration" else ["--", "-kernel", "k"]
    with started("-m", "x86tables", "prove", "--on", "qemu", *words, TMPDIR=str(temporary)) as prove:
        (process,) = numbers(noted, 1)
        prove.send_signal(number)
        out, err = prove.communicate()
    assert (prove.returncode, out, err) == (130 if number == signal.SIGINT else -number, "", "")
    assert gone(process)
    assert number == signal.SIGKILL or not list(temporary.iterdir())


@linux_only
def test_what_qemu_started_ends_too(fake: Fake, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    fake(f"os.fork()\nopen({str(noted)!r}, 'a').write(f'{{os.getpid()}} ')" + SLEEP)
    with started("-m", "x86tables", "prove", "--on", "qemu", "--", "-kernel", "k") as prove:
        processes = numbers(noted, 2)
        prove.terminate()
    assert all(gone(process) for process in processes)


def test_a_signal_is_an_exception_until_the_block_ends(tmp_path: Path) -> None:
    with running([sys.executable, "-c", "pass"]):  # no block of signals may be left behind
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    code = """
import os, signal
from x86tables.prove.processes import exceptions_from_signals
with exceptions_from_signals():
    try:
        with exceptions_from_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("cleaned up", flush=True)
print("not reached")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (-signal.SIGTERM, "cleaned up\n", "")


def test_the_callers_own_handler_stays() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with exceptions_from_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


# A QEMU that misbehaves


def test_a_version_that_never_comes(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake("", f"import time; open({os.devnull!r}); time.sleep(60)")
    monkeypatch.setattr(guest, "ANSWER", 0.3)
    assert (
        refused("prove", "--on", "qemu", "--", "-kernel", "k") == f"{path} --version does not answer within 0.3 seconds"
    )


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (b"QEMU emulator version 7.2\x1b[2J\xff (Debian)", "QEMU 7.2\\x1b[2J\ufffd (TCG)"),
        (b"QEMU emulator version", "QEMU (TCG)"),
        (b"\xff\xfe\n", "QEMU (TCG)"),
    ],
)
def test_a_version_in_other_bytes(fake: Fake, printed: bytes, shown: str) -> None:
    fake("", f"os.write(1, {printed!r})")
    _, out, err = call("prove", "--on", "qemu", "--", "-kernel", "k")
    assert (out.splitlines()[0], err) == (f"qemu -kernel k: on {shown}", "")


def test_a_program_that_cannot_be_run(fake: Fake) -> None:
    path = fake("")
    path.write_bytes(b"\x7fELF\0\0")
    assert refused("prove", CONFIG, "--on", "qemu") == f"{path} cannot be run: Exec format error"
    with pytest.raises(NotThere, match="no-such-program cannot be run: No such file"), running(["/no-such-program"]):
        pass


def test_a_log_that_is_closed_by_a_qemu_that_hangs(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("os.close(LOG)" + SLEEP)
    monkeypatch.setattr(guest, "ANSWER", 2.0)
    status, out, err = call("prove", "--on", "qemu", "--", "-kernel", "k")
    assert (status, err) == (1, "")
    assert "before QEMU closed its log, without ending: nothing is proved" in " ".join(out.split())


def test_a_log_and_output_in_other_bytes(fake: Fake) -> None:
    noise = (
        "os.write(LOG, b'\\xff\\xfe 0: v=\\xff\\n' * 3); os.write(1, b'\\xff\\x1b[2J'); os.write(2, b'\\xff\\x1b[2J')"
    )
    fake(f"{noise}; sys.exit(3)")
    status, out, err = call("prove", "--on", "qemu", "--", "-kernel", "k")
    assert (status, err) == (1, "")
    assert "before QEMU ended with status 3: nothing is proved; QEMU said: \ufffd\\x1b[2J" in " ".join(out.split())
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ("-kernel k", True),
        ("-kernel k -append nographic", True),
        ("-kernel k -display gtk", False),
        ("-nographic -kernel k", False),
        ("--nographic -kernel k", False),
        ("-vnc :1 -kernel k", False),
    ],
)
def test_no_display_where_none_is_asked_for(fake: Fake, tmp_path: Path, given: str, added: bool) -> None:
    fake(f"open({str(tmp_path / 'given')!r}, 'w').write(' '.join(sys.argv[1:]))")
    guest.watch(given.split())
    command = (tmp_path / "given").read_text()
    assert command.startswith(f"{given} -display none -accel" if added else f"{given} -accel")


def test_what_qemu_says_when_it_fails(fake: Fake) -> None:
    fake("os.write(2, b'warning: no audio\\ngtk initialization failed\\n'); sys.exit(1)")
    status, out, _ = call("prove", "--on", "qemu", "--", "-display", "gtk")
    assert status == 1
    assert "QEMU ended with status 1: nothing is proved; QEMU said: gtk initialization failed" in " ".join(out.split())


RAISED = "check_exception old: 0xffffffff new 0x{:x}\n"
EVENT = (
    "     0: v={:02x} e=0000 i=0 cpl=0 IP=0008:0000000000001000 pc=0000000000001000 SP=0010:{:016x} "
    "CR2={:016x}\nRAX=0000000000000000\nEFER=0000000000000d00\n"
)
DOUBLE = RAISED.format(13) + RAISED.format(8).replace("ffffffff", "d") + EVENT.format(8, 0x8000, 0)
OVERFLOW = RAISED.format(14) + EVENT.format(14, 0x8010, 0x7FF8)
TICKS = "Servicing hardware INT=0x20\n" + EVENT.format(0x20, 0x8000, 0)


@pytest.mark.parametrize(
    ("logged", "forever", "verdict"),
    [
        (DOUBLE, "", "survives"),  # the last line that there is
        (DOUBLE, TICKS, "survives"),
        (OVERFLOW, "", "survives"),
        (OVERFLOW, TICKS, "stopped late"),  # the kernel may have gone on
        ("", TICKS, "stopped late"),
    ],
)
def test_a_handler_that_has_run_is_not_waited_for(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, logged: str, forever: str, verdict: str
) -> None:
    begin = f"import time\nos.write(LOG, {logged.encode()!r})"
    fake(f"{begin}\nwhile True: os.write(LOG, {forever.encode()!r}); time.sleep(0.02)")
    monkeypatch.setattr(guest, "QUIET", 0.3)
    seconds = 3.0 if verdict == "stopped late" else 30.0
    begun = time.monotonic()
    ending = guest.watch(["-kernel", "k"], seconds)
    late = time.monotonic() - begun >= 3
    assert (late, ending.status) == (verdict == "stopped late", None)
    assert ending.verdict == ("survives" if logged else "unknown")


# Bochs' children


@linux_only
@pytest.mark.parametrize("number", ENDS)
def test_children_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C is sent to the whole process group, as a terminal does."""
    noted = tmp_path / "noted"
    code = f"""
import os, time
from x86tables.prove import workers
def work(item):
    with open({str(noted)!r}, "a") as file:
        file.write(f"{{os.getpid()}} ")
    time.sleep(60)
try:
    list(workers.run(lambda: work, range(4), 2, 1))
except KeyboardInterrupt:
    os._exit(130)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True, env={**os.environ}
    )
    with parent:
        processes = numbers(noted, 2)
        (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
        _, err = parent.communicate()
    assert (parent.returncode, err) == (130 if number == signal.SIGINT else -number, b"")
    assert all(gone(process) for process in processes)


def test_a_caller_that_has_seen_enough_leaves_no_child(tmp_path: Path) -> None:
    def work(item: int) -> int:
        time.sleep(item)
        return os.getpid()

    results = workers.run(lambda: work, [0, 60], 1, 1)
    _, process = next(results)
    results.close()  # type: ignore[attr-defined]
    assert gone(process)


def test_work_that_raises_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    results = dict(workers.run(lambda: lambda item: 10 // item, [1, 0, 5]))
    assert results.pop(0).why.startswith(
        "ZeroDivisionError: integer division or modulo by zero (test_processes.py, line"
    )
    assert results == {1: 10, 5: 2}
    assert capfd.readouterr() == ("", "")


def test_a_child_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SECONDS", 1)
    ((_, crashed),) = workers.run(lambda: time.sleep, [60])
    assert str(crashed) == "the emulator's process ended: no result within 1 seconds"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "raise ImportError('libbochs.so: wrong ELF class')",
            "bochscpu cannot be imported: libbochs.so: wrong ELF class",
        ),
        ("import os; os.abort()", "the emulator does not start: SIGABRT"),
        ("raise OSError('broken')", "the emulator does not start: OSError: broken (bochscpu.py, line 1)"),
        ("", "bochscpu cannot be imported: No module named 'bochscpu.memory'; 'bochscpu' is not a package"),
    ],
)
def test_a_bochs_that_cannot_be_imported(tmp_path: Path, source: str, sentence: str) -> None:
    (tmp_path / "bochscpu.py").write_text(source + "\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with started("-m", "x86tables", "prove", IMAGES / "linux.core", "--on", "bochs", PYTHONPATH=path) as prove:
        out, err = prove.communicate()
    assert (prove.returncode, out, err) == (2, "", f"x86tables: {sentence}\n")
