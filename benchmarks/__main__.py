"""One table of ratios: ours against each peer on a whole IDT and on one gate, and `x86tables dump` against `pass`.

Each line is a duel within one run: both sides alternate for many rounds, and their medians are compared. Before any
time is taken, a peer must have given the same result as we do.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import venv
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks import peers, readers, scan
from benchmarks.duels import duel, line
from x86tables import Gate, checks, schemas
from x86tables.delivery import scenarios
from x86tables.machine.image import Snapshot
from x86tables.readers import open_image

ROOT = Path(__file__).parent.parent
ROUNDS = 60
TABLE = random.Random(1).randbytes(256 * Gate.size)


def whole_tables() -> None:
    rows = Gate.rows(TABLE)
    gates = Gate.parse_table(TABLE)
    assert [tuple(gate) for gate in gates] == rows
    targets = {peers.bit_struct: (60, 120), peers.named_tuples: (1.5, 1.5)}
    for peer in peers.PEERS:
        values = peer.decode(TABLE)
        assert peer.rows(values) == rows, peer.name
        assert peer.encode(values) == TABLE == Gate.build_table(gates), peer.name
        decode_target, encode_target = targets.get(peer, (None, None))
        decode, encode = partial(peer.decode, TABLE), partial(peer.encode, values)
        line("decode IDT", "Gate.rows", peer.name, duel(ROUNDS, lambda: Gate.rows(TABLE), decode), decode_target)
        turn = duel(ROUNDS, lambda: Gate.parse_table(TABLE), decode)
        line("decode IDT", "Gate.parse_table", peer.name, turn, decode_target)
        turn = duel(ROUNDS, lambda: Gate.build_table(gates), encode)
        line("encode IDT", "Gate.build_table", peer.name, turn, encode_target)


def one_gate() -> None:
    raw = TABLE[:16]
    gate, container = Gate.parse(raw), peers.GATE.parse(raw)
    assert peers.bit_struct.rows([container]) == [tuple(gate)]
    assert schemas.Gate.parse(raw) == gate
    assert bytes(gate) == peers.GATE.build(container) == schemas.Gate.build(gate) == raw
    peer = "construct BitStruct"
    line("one gate", "Gate.parse", peer, duel(ROUNDS, lambda: Gate.parse(raw), lambda: peers.GATE.parse(raw)), 20)
    line("one gate", "bytes(gate)", peer, duel(ROUNDS, lambda: bytes(gate), lambda: peers.GATE.build(container)), 20)
    turn = duel(ROUNDS, lambda: schemas.Gate.parse(raw), lambda: peers.GATE.parse(raw))
    line("one gate", "schemas.Gate.parse", peer, turn, 8)
    turn = duel(ROUNDS, lambda: schemas.Gate.build(gate), lambda: peers.GATE.build(container))
    line("one gate", "schemas.Gate.build", peer, turn, 8)


def rules() -> None:
    """The verdict on both CPUs of a Linux, alone and with every rule; each time from machines that remember nothing."""
    linux = open_image(str(ROOT / "tests/images/linux.core"))

    def verdicts() -> Snapshot:
        image = linux.replace(machines=tuple(machine.replace() for machine in linux.machines))
        for machine in image.machines:
            assert scenarios.run_scenario("stack-overflow", machine).verdict == "survives"
        return image

    turn = duel(ROUNDS, lambda: checks.judge(verdicts()), verdicts)
    line("check", "verdict and rules", "verdict alone", turn, 1.5, at_most=True)


def process() -> None:
    """The command as people run it: installed, not editable, in an environment of its own."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source, image, python = scratch / "source", scratch / "idt.bin", scratch / "venv/bin/python"
        for part in ("x86tables", "data"):
            shutil.copytree(ROOT / part, source / part)
        for part in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, source)
        image.write_bytes((ROOT / "tests/images/ovmf-idt.bin").read_bytes()[0x18:][: 256 * Gate.size])
        venv.create(scratch / "venv", with_pip=False, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "-qq"]
        subprocess.run([*pip, "install", str(source)], check=True)

        def run(*argv: str) -> None:
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=scratch)

        dump = [str(python.with_name("x86tables")), "dump", image.name, "--base", "0x1000", "--idt", "0x1000,0xfff"]
        turn = duel(ROUNDS // 2, lambda: run(*dump), lambda: run(str(python), "-c", "pass"), clock=perf_counter)
        line("process", "dump of an IDT", "python -c pass", turn, 3.5, at_most=True)
        linux = str(ROOT / "tests/images/linux.core")
        short = (
            (["decode", "0x00af9b000000ffff"], 3.4),
            (["explain", "IDT004"], 5),
            (["--help"], 5),
            (["check", linux], 5),
        )
        for argv, most in short:
            command = [str(python.with_name("x86tables")), *argv]
            turn = duel(ROUNDS // 2, partial(run, *command), lambda: run(str(python), "-c", "pass"), clock=perf_counter)
            line("process", argv[0], "python -c pass", turn, most, at_most=True)
        readers.make(big := scratch / "big.core")
        for core, what, most in ((linux, "dump of a Linux", 3.5), (big, "dump of 4 GiB", 8)):
            dump = [str(python.with_name("x86tables")), "dump", str(core)]
            turn = duel(ROUNDS // 2, partial(run, *dump), lambda: run(str(python), "-c", "pass"), clock=perf_counter)
            line("process", what, "python -c pass", turn, most, at_most=True)
        peak = readers.resident(python, "dump", str(big)) / 2**20
        print(f"dump of a core of 4 GiB: {peak:.1f} MiB resident; at most 60: {'met' if peak <= 60 else 'MISSED'}")
        print("\n4 GiB, ours and volatility3's; (b): without asking whether the image holds the page")
        readers.compare(big)
    print("\nThe search for tables, in an image of 1 GiB")
    scan.main()


def main() -> None:
    print(
        f"Python {sys.version.split()[0]}; medians of {ROUNDS} rounds, microseconds; ratio: times that ours is faster"
    )
    print("(check, process: slower; (a): takes numbers that do not fit their field)\n")
    print(f"{'work':<12} {'ours':<19} {'peer':<22} {'ours':>9} {'peer':>9} {'ratio':>7}  target")
    whole_tables()
    one_gate()
    rules()
    process()


if __name__ == "__main__":
    main()
