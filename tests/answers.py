"""Save what every command answers for every image, example and log: python tests/answers.py FOLDER

Run it before and after a change that must not change any answer, and compare the two folders with `diff -r`. JSON goes
to NAME.json, text to NAME.txt, written files to NAME/; the exit status and standard error stand at the end.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from x86tables.commands import main

ROOT = Path(__file__).parent.parent
IMAGES, LOGS, GOLDEN, EXAMPLES = (ROOT / name for name in ("tests/images", "tests/logs", "tests/golden", "examples"))
EVENTS = {
    "pf": ["--vector", "14", "--cr2", "0xdeadbeef", "--error-code", "2"],
    "df": ["--vector", "#DF"],
    "nmi": ["--vector", "2"],
    "int80": ["--vector", "0x80", "--kind", "int", "--cpl", "3"],
    "irq": ["--vector", "0x20", "--cpl", "3", "--rsp", "0x7ffff000"],
}
Job = tuple[str, list[str]]  # the name of the answer, the command line; {out} is a folder of the answer's own


def images() -> Iterator[tuple[str, list[str]]]:
    """Every image and declaration with the options that belong to it."""
    for path in sorted(IMAGES.glob("*.core*")):
        names = path.with_name(path.name.split(".")[0].removesuffix("-tables") + ".map")
        yield path.name, [str(path), *(["--symbols", str(names)] if names.exists() else [])]
    yield "triple", [str(LOGS / "triple.core.xz"), "--symbols", str(LOGS / "triple.elf.xz")]
    yield "triple-elf", [str(LOGS / "triple.elf.xz")]
    for name in ("ovmf-idt", "ovmf-gdt"):
        table = f"--{name[-3:]}"
        yield name, [str(IMAGES / f"{name}.bin"), "--base", "0x7456000", table, "0x7456018,0xfff"]
    for name in ("double_fault.toml", "two_cpus.toml"):
        yield name, [str(EXAMPLES / name)]


def jobs(work: Path) -> Iterator[Job]:
    """Every command line, by the name of its answer."""
    for name, words in images():
        for form in ("text", "json"):
            yield f"dump-{name}", ["dump", *words, "--all", "--format", form]
            yield f"check-{name}", ["check", *words, "--scenario", "all", "--format", form]
            yield f"check-steps-{name}", ["check", *words, "--steps", "--format", form]
            yield f"prove-{name}", ["prove", *words, "--on", "bochs", "--scenario", "all", "--format", form]
            for event, options in EVENTS.items():
                yield f"trace-{event}-{name}", ["trace", *words, *options, "--format", form]
            for code in ("0x402", "0x42", "0x10", "0x73", "0xffff"):
                yield (
                    f"decode-in-{code}-{name}",
                    ["decode", "--as", "error-code", code, "--in", *words, "--format", form],
                )
            for code in ("0x0", "0x2", "0x10", "0x15"):
                words_at = ["--address", "0xffffffff90a03e98", "--in", *words, "--format", form]
                yield f"decode-pf-{code}-{name}", ["decode", "--as", "page-fault-error", code, *words_at]
        yield f"sarif-{name}", ["check", *words, "--format", "sarif"]
        yield f"extract-{name}", ["extract", *words, "-o", "{out}/small"]
    for path in sorted(LOGS.glob("*.log.xz")):
        known = [] if "linux" in path.name else ["--symbols", str(LOGS / "triple.elf.xz")]
        inside = ["--in", str(LOGS / "triple.core.xz")] if path.name == "triple.log.xz" else []
        for form in ("text", "json"):
            yield f"log-{path.name}", ["log", str(path), "--format", form]
            yield f"log-with-{path.name}", ["log", str(path), *known, *inside, "--format", form]
    for number, (kind, value) in enumerate(golden()):
        for form in ("text", "json"):
            yield f"decode-{number}-{kind}", ["decode", "--as", kind, value, "--format", form]
            yield f"decode-{number}", ["decode", value, "--format", form]
    for path in (*EXAMPLES.glob("*.toml"), work / "kernel.toml"):
        kernel = ["--symbols", str(work / "kernel.elf")] if path.parent == work else []
        for language in ("bin", "c", "gas", "json", "ld", "nasm", "rust", "stubs"):
            yield f"build-{path.stem}-{language}", ["build", str(path), "-o", "{out}", "--emit", language, *kernel]
    link = ["link", str(work / "kernel.elf"), str(work / "kernel.toml")]
    yield "link", [*link, "-o", "{out}/kernel.elf"]
    yield "link-verify", [*link, "--verify"]
    yield "link-triple-fault", [link[1], str(work / "triple-fault.toml"), "-o", "{out}/kernel.elf"]
    yield "link-verify-triple-fault", [link[1], str(work / "triple-fault.toml"), "--verify"]
    for name in ("kernel.elf", "kernel.toml", "triple-fault.toml"):
        symbols = ["--symbols", str(work / "kernel.elf")] if name.endswith("toml") else []
        for form in ("text", "json"):
            yield f"check-{name}", ["check", str(work / name), *symbols, "--scenario", "all", "--format", form]
    for form in ("text", "json"):
        yield "explain", ["explain", "--format", form]
        yield "explain-idt004", ["explain", "IDT004", "--format", form]
    yield "schema", ["schema"]


def golden() -> Iterator[tuple[str, str]]:
    """Published values and the kind that `decode` calls them by."""
    from x86tables.decode import KINDS

    kinds = {layout.__name__: kind for kind, layout in KINDS.items()}
    for path in sorted(GOLDEN.glob("*.txt")):
        for line in path.read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                value, layout = (part.strip() for part in line.split("|")[:2])
                if "*" not in value and layout in kinds:
                    yield kinds[layout], value


def answer(job: Job, folder: Path, work: Path) -> None:
    """Run one command line and save what it says."""
    name, words = job
    out = folder / "files" / name
    if any("{out}" in word for word in words):
        out.mkdir(parents=True, exist_ok=True)
    said, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
        status: object = main([word.replace("{out}", str(out)) for word in words])
    text = f"{said.getvalue()}== {status} {complaint.getvalue()}"
    for path, short in ((str(out), "OUT"), (str(work), "WORK"), (str(ROOT) + "/", "")):
        text = text.replace(path, short)
    ending = "json" if words[-1] in ("json", "sarif") or words[0] == "schema" else "txt"
    (folder / f"{name}.{ending}").write_text(text)
    for file in out.rglob("*") if out.exists() else ():
        file.write_bytes(file.read_bytes().replace(bytes(work), b"WORK").replace(bytes(ROOT), b"ROOT"))


def build_kernel(work: Path) -> None:
    """The example kernel, linked, with its declaration and a copy of that without its IST stack."""
    kernel = work / "source"
    shutil.copytree(EXAMPLES / "kernel", kernel, ignore=shutil.ignore_patterns("build"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["make", "-s", f"PYTHON={sys.executable}"]
    subprocess.run(command, cwd=kernel, env=environment, check=True, stdout=subprocess.DEVNULL)
    linked = kernel / "build/survives/kernel.elf"
    strip = ["objcopy", "--strip-debug", str(linked), str(work / "kernel.elf")]  # it names folders
    subprocess.run(strip, check=True)
    shutil.rmtree(kernel)
    text = (EXAMPLES / "kernel/kernel.toml").read_text()
    (work / "kernel.toml").write_text(text)
    (work / "triple-fault.toml").write_text(text.replace(', ist = "double_fault"', ""))


def run(folder: Path) -> None:
    """Save all answers in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / "kernel"
    build_kernel(work)
    with ProcessPoolExecutor() as pool:
        waiting = [pool.submit(answer, job, folder, work) for job in jobs(work)]
        for future in waiting:
            future.result()


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
