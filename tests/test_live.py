"""A running machine: judged while it is stopped for a moment, and it goes on however that ends."""

import contextlib
import lzma
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import recast
from cli import call, fitting, refused
from test_migration import guest

import x86tables
from x86tables import budgets
from x86tables.live import address, named
from x86tables.live.gdb import Stub
from x86tables.live.pages import memory_map
from x86tables.live.qmp import Monitor

HERE = Path(__file__).parent
needs_qemu = pytest.mark.needs("qemu-system-x86_64")


class Machine:
    """QEMU with two monitors, one for the tests, one for what is tested, and a gdb stub."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.asked, self.path, self.stub = folder / "own", f"qmp:{folder / 'qmp'}", f"gdb:{folder / 'gdb'}"
        command = ["qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-nodefaults", *arguments]
        for place in (self.asked, folder / "qmp"):
            command += ["-qmp", f"unix:{place},server=on,wait=off"]
        command += ["-gdb", f"unix:{folder / 'gdb'},server=on,wait=off"]
        self.process = subprocess.Popen(command)
        end = time.monotonic() + 30
        while not (self.asked.exists() and (folder / "qmp").exists()) and time.monotonic() < end:
            time.sleep(0.05)
        self.monitor = Monitor("own", str(self.asked))

    @property
    def running(self) -> bool:
        return bool(self.monitor.execute("query-status")["running"])

    def close(self) -> None:
        self.monitor.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    made = Machine(folder, guest(folder))
    time.sleep(1.5)
    yield made
    made.close()


@pytest.fixture
def machine(booted: Machine) -> Machine:
    """It runs, whatever the test before has left."""
    booted.monitor.execute("cont")
    return booted


@needs_qemu
def test_it_says_what_the_core_says(machine: Machine, tmp_path: Path) -> None:
    machine.monitor.execute("stop")
    core = tmp_path / "guest.core"
    machine.monitor.execute("dump-guest-memory", paging=False, protocol=f"file:{core}")
    efer = x86tables.open(machine.path).machines[0].registers.efer
    live, dumped = recast.said(Path(machine.path)), recast.said(core, "--reg", f"efer={efer:#x}")
    for said in (live, dumped):
        del said[0]["cpus"][0]["registers"]["tr"]["flags"]  # the core has bits of QEMU's own in it
    assert live == dumped
    assert not machine.running, "it was stopped before"
    machine.monitor.execute("cont")
    status, text, _ = call("check", machine.path, "--format", "json")
    assert fitting("check", text)["image"]["format"] == "qmp" and status in (0, 1)
    assert machine.running


@needs_qemu
def test_a_stub_says_what_the_monitor_says(machine: Machine) -> None:
    """Everything, of the same moment; a debugger that leaves lets it run."""
    machine.monitor.execute("stop")
    known = recast.said(Path(machine.path))
    assert recast.said(Path(machine.stub))[0] == known[0] and machine.running
    machine.monitor.execute("stop")
    status, text, _ = call("check", machine.stub, "--format", "json")
    assert fitting("check", text)["image"]["format"] == "gdb" and status in (0, 1)
    assert machine.running


@needs_qemu
def test_a_stub_that_is_not_qemus(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No monitor behind it, no physical memory: the registers that every stub has, and tables that options name."""
    machine.monitor.execute("stop")
    (known,) = x86tables.open(machine.path).machines
    real = Stub.ask
    for refused_ in (b"Qqemu", b"qRcmd"):

        def ask(self: Stub, packet: bytes, acknowledged: bool = True, no: bytes = refused_) -> bytes:
            return b"" if packet.startswith(no) else real(self, packet, acknowledged)

        monkeypatch.setattr(Stub, "ask", ask)
        assert known.registers.gdtr and known.registers.idtr
        tables = [f"{table.base:#x},{table.limit:#x}" for table in (known.registers.gdtr, known.registers.idtr)]
        image = x86tables.open(machine.stub, gdt=tables[0], idt=tables[1])
        (found,) = image.machines
        assert (found.registers.rip, found.registers.rsp) == (known.registers.rip, known.registers.rsp)
        assert found.registers.general == known.registers.general and found.registers.cr3 is None
        assert (bytes(found.gdt), bytes(found.idt)) == (bytes(known.gdt), bytes(known.idt))
        assert "this stub shows linear memory only" in image.snapshot.remarks[0]
        assert machine.running, "it lets it run"
        machine.monitor.execute("stop")


@needs_qemu
def test_a_machine_that_does_not_run_yet_stays_so(tmp_path: Path) -> None:
    made = Machine(tmp_path, ["-S", *guest(tmp_path)])
    try:
        for path in (made.path, made.stub):
            assert call("dump", path)[0] == 0 and not made.running
    finally:
        made.close()


@needs_qemu
def test_only_what_is_needed_is_read(machine: Machine) -> None:
    image = x86tables.open(machine.path)
    assert sum(map(len, image.snapshot.memory.ranges)) < 1 << 20
    assert [cpu.verdict for cpu in image.check()] and machine.running


@needs_qemu
def test_it_goes_on_whatever_breaks(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception, Ctrl-C and a connection that is cut, before and after each thing that QEMU is asked."""
    for path, kind, method in ((machine.path, Monitor, "execute"), (machine.stub, Stub, "ask")):
        for ending in (KeyboardInterrupt, ValueError, ConnectionResetError):
            for late in (False, True):
                for step in (1, 2, 3, 4, 5, 8, 12, 13, 14):
                    with monkeypatch.context() as patch, pytest.raises(ending):
                        patch.setattr(kind, method, broken(getattr(kind, method), ending, late, step))
                        x86tables.open(path)
                        raise ending  # it asks less than `step` times
                    assert machine.running, (path, ending, late, step)


def broken(real: Callable[..., Any], ending: type[BaseException], late: bool, step: int) -> Callable[..., Any]:
    """What asks QEMU, and ends so at that step, before or after QEMU has done it."""
    count = 0

    def execute(self: Monitor | Stub, command: Any, **arguments: Any) -> Any:
        nonlocal count
        count += 1
        answer = real(self, command, **arguments) if late or count != step else None
        if count == step:
            if ending is ConnectionResetError:
                self.close()
            raise ending
        return answer

    return execute


@needs_qemu
@pytest.mark.parametrize("by", ["path", "stub"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_goes_on_after_a_signal(number: signal.Signals, by: str, machine: Machine, tmp_path: Path) -> None:
    """A process that is ended while the machine is stopped."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from x86tables.live.pages import GuestPages\n"
        "from x86tables.commands import main\n"
        "def slow(self, page):\n"
        "    print('stopped', flush=True)\n"
        "    time.sleep(60)\n"
        "GuestPages._page = slow\n"
        f"sys.exit(main(['check', {getattr(machine, by)!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "stopped\n"
    assert not machine.running
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert machine.running


@needs_qemu
def test_capture(machine: Machine, tmp_path: Path) -> None:
    """Of a machine that is stopped, so that both are of one moment."""
    machine.monitor.execute("stop")
    small, whole = tmp_path / "small.core", tmp_path / "whole.core"
    assert call("capture", machine.path, "-o", small)[0] == 0
    assert recast.said(small) == recast.said(Path(machine.path))
    assert small.stat().st_mode & 0o777 == 0o600 and small.stat().st_size < 1 << 20
    assert call("capture", machine.path, "-o", whole, "--whole")[0] == 0
    assert whole.stat().st_size > 1 << 20 and not machine.running
    assert recast.said(whole)[1]["verdict"] == recast.said(small)[1]["verdict"]
    assert (
        refused("capture", "kernel.core", "-o", small)
        == "kernel.core: qmp:SOCKET, qmp:HOST:PORT or gdb:HOST:PORT expected"
    )


@pytest.fixture
def dying(tmp_path: Path) -> list[str]:
    """QEMU's arguments for a kernel whose #DF gate leads nowhere."""
    (kernel := tmp_path / "triple.elf").write_bytes(lzma.decompress((HERE / "logs/triple.elf.xz").read_bytes()))
    return ["-kernel", str(kernel), "-m", "32"]


@needs_qemu
def test_a_triple_fault_is_caught(dying: list[str], tmp_path: Path) -> None:
    """QEMU started for it: one screen, and a core that says the same."""
    log, core = tmp_path / "qemu.log", tmp_path / "kept.core"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-display", "none", *dying, "-d", "int,cpu_reset", "-D", log]
    status, text, err = call("watch", "--symbols", dying[1], "-o", core, "--", *command)
    assert (status, err) == (1, "")
    lines = text.splitlines()
    assert lines[0].startswith("qemu-system-x86_64: stopped (shutdown): it shut down, or was reset: a triple fault")
    assert lines[2].startswith("  RIP 0x") and lines[3].startswith("CPU 0  triple-fault if a guard page is hit")
    assert any(line.startswith("  fix    ") for line in lines[:12]) and lines.index("") == 1
    assert f"{core}: kept; `x86tables check {core}` says it step by step" in text
    assert "Triple fault: the processor shut down" in text, "and what the log says"
    (cpu,) = x86tables.open(str(core)).check()
    assert cpu.verdict == "triple-fault"


@needs_qemu
def test_a_machine_is_watched_that_runs_already(dying: list[str], tmp_path: Path) -> None:
    made = Machine(tmp_path, ["-no-reboot", "-no-shutdown", "-S", *dying])
    try:
        watching = subprocess.Popen(
            [sys.executable, "-m", "x86tables", "watch", made.path, "-o", str(tmp_path / "kept.core")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ},  # readline has put COLUMNS into the process's own
        )
        time.sleep(1)
        made.monitor.execute("cont")
        text = watching.communicate(timeout=60)[0]
        assert watching.returncode == 1 and text.startswith(f"{made.path}: stopped (shutdown)")
    finally:
        made.close()


def test_a_program_that_ends_by_itself(tmp_path: Path) -> None:
    assert call("watch", "--", "true")[:2] == (0, "true: ended by itself, without a shutdown that stops it\n")
    assert "false: ended by itself with status 1, without" in call("watch", "--", "false")[1]
    assert refused("watch", "no-such-program") == "no-such-program: neither qmp:SOCKET nor a program"
    assert refused("watch", "qmp:/nowhere", "--", "x") == "either LIVE or a QEMU command behind --"


def test_names() -> None:
    assert named("qmp:/run/q") and not named("kernel.core") and not named("qmp")
    assert address("qmp:/run/q") == "/run/q" and address("qmp:localhost:4444") == ("localhost", 4444)
    assert address("qmp:[::1]:4444") == ("::1", 4444) and address("qmp:a:b") == "a:b"
    assert refused("check", "qmp:") == "qmp:: qmp:SOCKET, qmp:HOST:PORT or gdb:HOST:PORT expected"
    assert refused("check", "qmp:/nowhere").startswith("qmp:/nowhere: no QMP server answers there: ")
    assert "scan reads a file: `x86tables capture qmp:/x --whole" in refused("scan", "qmp:/x")
    assert "`x86tables capture`" in refused("extract", "qmp:/nowhere", "-o", "x")
    assert named("gdb:localhost:1234") and address("gdb:localhost:1234") == ("localhost", 1234)
    assert refused("check", "gdb:/nowhere").startswith("gdb:/nowhere: no gdb stub answers there: ")
    assert "asked by QMP" in refused("capture", "gdb:/nowhere", "-o", "x", "--whole")
    assert "QEMU says by QMP why it stopped" in refused("watch", "gdb:/nowhere")


@pytest.mark.parametrize("protocol", ["qmp", "gdb"])
@pytest.mark.parametrize(
    "greeting", [b"hello\r\n", b'{"QMP": 1}\r\n', b"", b"x" * (budgets.PACKET + 100), b"$abc#00"], ids=range(5)
)
def test_a_server_that_says_something_else(greeting: bytes, protocol: str, tmp_path: Path) -> None:
    """Not the protocol, or nothing at all: a sentence. It is asked again: the machine may have stopped."""
    said = {
        "qmp": ("no QMP server answers there: ",),
        "gdb": ("the stub does not answer: ", "more than 0x100000 bytes that are no", "a packet of"),
    }[protocol]
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()

        def serve() -> None:
            for _ in range(2 if protocol == "gdb" else 1):
                with contextlib.suppress(OSError), server.accept()[0] as connection:
                    connection.sendall(greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        assert refused("dump", f"{protocol}:{place}").removeprefix(f"{protocol}:{place}: ").startswith(said)
        thread.join()


MTREE = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
  00000000000c0000-00000000000cafff (prio 1, rom): pc.ram @00000000000c0000
  00000000000d0000-00000000000fffff (prio 0, ram): pc.ram @00000000000d0000
  00000000fec00000-00000000fec00fff (prio 0, i/o): kvm-ioapic
  00000000fffc0000-00000000ffffffff (prio 0, romd): pc.bios
"""


def test_the_memory_that_there_is() -> None:
    assert memory_map(MTREE) == [range(0xCB000), range(0xD0000, 0x100000), range(0xFFFC_0000, 1 << 32)]
    assert memory_map("") == []
