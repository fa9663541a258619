"""Pages and pictures: well-formed, readable without colours, and nothing cut or overlapping in a real browser."""

import json
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli import IMAGES, call, output, refused

from x86tables import api, budgets
from x86tables.difference import Difference, compare_images
from x86tables.machine.symbols import Symbols
from x86tables.qemulog import entries
from x86tables.qemulog.chains import read_log
from x86tables.qemulog.report import report
from x86tables.render.html import check as page
from x86tables.render.html import difference as diff_page
from x86tables.render.html import dump as dump_page
from x86tables.render.html import log as log_page

LOGS = Path(__file__).parent / "logs"
OVMF = IMAGES / "ovmf.core"
LINUX = (IMAGES / "linux.core", "--symbols", IMAGES / "linux.map")
TRIPLE = (LOGS / "triple.core.xz", "--symbols", LOGS / "triple.elf.xz")
PAGES: dict[str, tuple[object, ...]] = {
    "survives": ("check", *LINUX, "--scenario", "all"),
    "triple-fault": ("check", *TRIPLE, "--scenario", "all"),
    "xen": ("check", IMAGES / "xen.core"),
    "silent": ("check", IMAGES / "cloud.core"),
    "memtest": ("check", IMAGES / "memtest.core"),
    "ovmf": ("check", IMAGES / "ovmf.core"),
    "not-applicable": ("check", IMAGES / "grub.core"),
    "dump": ("dump", *LINUX),
    "dump of Xen": ("dump", IMAGES / "xen.core"),
    "dump in protected mode": ("dump", IMAGES / "linux32.core"),
    "dump in real mode": ("dump", IMAGES / "seabios.core"),
    "log": ("log", LOGS / "triple.log.xz", "--in", TRIPLE[0], *TRIPLE[1:]),
    "log of reboots": ("log", LOGS / "reboots.log.xz"),
    "log of nothing": ("log", LOGS / "linux.log.xz"),
    "diff": ("diff", IMAGES / "linux.core", IMAGES / "memtest.core"),
    "no difference": ("diff", IMAGES / "linux.core", IMAGES / "linux.core"),
}
PICTURES: dict[str, tuple[object, ...]] = {
    "trace": ("trace", *LINUX, "--vector", "14", "--steps"),
    "shutdown": ("trace", OVMF, "--vector", "14", "--rsp", "0x7e00000"),
    "bits": ("decode", "0x00af9b000000ffff"),
    "bits of a TSS": ("decode", "00" * 104, "--as", "tss"),
    "stacks of Xen": ("check", IMAGES / "xen.core"),
    "stacks": ("check", *LINUX),
    "no guard": ("check", IMAGES / "cloud.core"),
}
VOID = {"meta", "br", "wbr"}


class Outline(HTMLParser):
    """The nesting of a page, checked while it is read: its elements with their text, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for number in self.open:
            self.elements[number][2].append(data)

    def of(self, *tags: str) -> Iterator[tuple[str, dict[str, str | None], str]]:
        return ((tag, attrs, "".join(text)) for tag, attrs, text in self.elements if tag in tags)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: call(*words, "--format", "html")[1] for name, words in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
def test_a_screen_reader_finds_its_way(pages: dict[str, str], name: str) -> None:
    """Headings step by step, tables with heads, pictures with words; a file that asks for nothing outside."""
    text = pages[name]
    assert text.isascii() and text.startswith("<!DOCTYPE html>")
    found = Outline(text)
    levels = [int(tag[1]) for tag, _, _ in found.of("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels
    assert all(said.strip() for _, _, said in found.of("h1", "h2", "h3", "h4", "th", "summary", "figcaption"))
    assert all(attrs.get("scope") in ("row", "col") for _, attrs, _ in found.of("th"))
    assert len(list(found.of("table"))) == len(list(found.of("caption")))
    pictures = list(found.of("svg"))
    assert all(attrs["role"] == "img" and attrs["aria-label"] for _, attrs, _ in pictures)
    assert len(list(found.of("desc"))) == len(pictures) and all(said for _, _, said in found.of("desc"))
    assert not list(found.of("script", "link", "img", "iframe"))
    assert not re.search(r"(?:src|href)=|url\(|@import", text)


def test_the_answer_comes_first(pages: dict[str, str]) -> None:
    found = Outline(pages["triple-fault"])
    ((_, _, head),) = found.of("h1")
    assert head == "triple-fault if a guard page is hit; the stack in use is guarded"
    answer = next(said for tag, attrs, said in found.of("section"))
    assert "IDT004: point an IST field of the TSS" in answer and "#DF cannot be delivered: push SS" in answer
    failed = [said for _, attrs, said in found.of("li") if attrs.get("class") == "failed" and "push SS" in said]
    assert any("failed: PTE not present" in said and "PTE at 0x105840 = 0x0" in said for said in failed)


def test_colours_have_words_beside_them(pages: dict[str, str]) -> None:
    """A cell of the map of vectors has a letter and a name, and it is that of the variant."""
    found = Outline(pages["survives"])
    cells = [(attrs, said) for _, attrs, said in found.of("td") if attrs.get("class") == "survives"]
    assert len(cells) >= 768 and {said for _, said in cells} == {"s"}
    titles = [attrs["title"] for _, attrs, _ in found.of("abbr")]
    assert titles[:9] == [
        f"{name}: survives" for name in ["#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF"]
    ]
    assert all(said.split() for _, attrs, said in found.of("strong") if "badge" in (attrs["class"] or ""))


def test_cpus_that_fare_alike_are_shown_once() -> None:
    image = api.open(str(IMAGES / "memtest.core"))
    (first, *_) = image.check()
    again = first.replace(machine=image.machines[1])
    found = Outline("".join(page.check(image.snapshot, [first, again])))
    assert [said for _, _, said in found.of("h2")] == ["CPUs 0,1"]


def test_nothing_that_a_file_says_is_markup() -> None:
    """Symbols and names of files are hostile; the words stay, as text."""
    hostile = '<script>alert("&")</script>\x1b[31m\u202e'
    image = api.open(str(IMAGES / "linux.core"))
    handler = image.machines[0].idt[8].offset
    snapshot = image.snapshot.replace(path=hostile, symbols=Symbols([(handler, hostile)]), remarks=(hostile,))
    text = "".join(page.check(snapshot, image.check(["all"])))
    found = Outline(text)
    assert not list(found.of("script")) and text.isascii() and "\x1b" not in text
    shown = '<script>alert("&")</script>\\x1b[31m\\u202e'
    assert shown in next(said for _, _, said in found.of("title"))
    assert any(shown in said for _, _, said in found.of("li"))
    ElementTree.fromstring("".join(page.svg(snapshot, image.check())))
    text = "".join(dump_page.dump(snapshot, image.machines, ("idt", "tss"), True))
    assert not list(Outline(text).of("script")) and any(shown in said for _, _, said in Outline(text).of("td"))
    log = report(read_log(entries.read(str(LOGS / "triple.log.xz"))))
    text = "".join(log_page.log(hostile, log, Symbols([(0x100118, hostile)]), (hostile,)))
    assert not list(Outline(text).of("script")) and any(shown in said for _, _, said in Outline(text).of("dd"))
    hostile_image = api.Image(snapshot)
    (one, *_), _, _ = compare_images(image, hostile_image, (0, None))
    moved = (Difference("idt", 8, "offset", handler, handler),)
    pieces = diff_page.diff(image, hostile_image, (hostile, hostile), [one.replace(differences=moved)])
    outline = Outline("".join(pieces))
    assert not list(outline.of("script")) and any(shown in said for _, _, said in outline.of("td"))


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_a_file_of_its_own(name: str) -> None:
    text = call(*PICTURES[name], "--format", "svg")[1]
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root[0].text and root[1].text
    assert text.isascii() and "prefers-color-scheme: dark" in text


def test_the_tables_open_to_their_bits(pages: dict[str, str]) -> None:
    """A row for each entry that the text shows, with the bytes of the image's own JSON, and a figure for each."""
    found = Outline(pages["dump"])
    cpu = json.loads(output("dump", *LINUX, "--format", "json"))["cpus"][0]
    raw = {entry["raw"] for entry in (*cpu["gdt"]["entries"], *cpu["idt"]["gates"])}
    summaries = [said for _, _, said in found.of("summary")]
    assert sum(said in raw for said in summaries) > 40 and {said for said in summaries if said not in raw} <= {
        "all fields",
        *(
            entry["raw"]
            for entry in json.loads(output("dump", *LINUX, "--format", "json"))["cpus"][1]["gdt"]["entries"]
        ),
    }
    assert len(list(found.of("svg"))) == len(summaries)
    rows = [said for _, _, said in found.of("tr")]
    assert any(said.startswith("8 #DF") and "IST1" in said and "asm_exc_double_fault" in said for said in rows)
    assert any(said.startswith("IST1") and "8 KiB down to" in said and "guard below" in said for said in rows)


def test_diagrams_end_at_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "DIAGRAMS", 5)
    found = Outline(output("dump", *LINUX, "--format", "html"))
    assert len(list(found.of("summary"))) == 5 and len(list(found.of("tr"))) > 60


def test_a_log_says_what_to_fix(pages: dict[str, str]) -> None:
    found = Outline(pages["log"])
    assert [said for _, _, said in found.of("h1")] == ["Triple fault: the processor shut down, line 523."]
    answer = next(said for _, _, said in found.of("section"))
    assert "the stack ran out" in answer and "point an IST field of the TSS" in answer
    (head,) = [said for _, _, said in Outline(pages["log of nothing"]).of("h1")]
    assert head == "Nothing went wrong in delivery: no triple fault, no double fault."


def test_a_diff_has_the_lines_of_the_text(pages: dict[str, str]) -> None:
    text = re.sub(r"\s+", "", call(*PAGES["diff"])[1])
    rows = [said for _, _, said in Outline(pages["diff"]).of("td")]
    assert rows and all(re.sub(r"\s+", "", said) in text for said in rows)
    assert [said for _, _, said in Outline(pages["no difference"]).of("h1")] == ["No difference"]


def test_the_file_is_complete_or_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    words = ("check", *LINUX, "--format", "html")
    assert call(*words, "-o", out)[:2] == (0, "")
    assert out.read_text() == output(*words)
    assert call("check", LINUX[0], "--reg", "cr3", "--format", "html", "-o", out)[0] == 2
    assert out.read_text().endswith("</html>\n") and list(tmp_path.iterdir()) == [out]
    image = tmp_path / "copy.core"
    image.write_bytes((IMAGES / "linux.core").read_bytes())
    asked: list[tuple[object, ...]] = [("check", image, "-o", image)]
    asked += [("check", LINUX[0], "--map", f"{image}@0x1000", "-o", image)]
    for each in asked:
        assert refused(*each) == f"-o {image}: this is one of the files to read"
    assert image.read_bytes() == (IMAGES / "linux.core").read_bytes()
    assert refused("check", image, "-o", tmp_path).endswith("not a file")


MEASURE = """
<script>
function measure() {
  const found = [], texts = [];
  if (document.documentElement.scrollWidth > innerWidth) found.push("wider than the window: " + innerWidth);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest("script, style, title, desc") || !parent.checkVisibility()) continue;
    const picture = parent.closest("svg"), frame = picture && picture.getBoundingClientRect();
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.width < 1) continue;
      texts.push({box, node});
      if (picture && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
          box.bottom > frame.bottom + 1)) found.push("cut by its picture: " + node.data);
      if (!parent.closest(".scroll") && (box.left < 0 || box.right > innerWidth))
        found.push("cut by the window: " + node.data);
    }
    if (!picture) {
      const ratio = contrast(parent);
      if (ratio < 4.5) found.push("contrast " + ratio.toFixed(1) + ": " + node.data);
    }
  }
  texts.sort((a, b) => a.box.top - b.box.top);
  texts.forEach((one, number) => {
    for (let other, next = number + 1; (other = texts[next]) && other.box.top < one.box.bottom - 2; next++) {
      const wide = Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left);
      const high = Math.min(one.box.bottom, other.box.bottom) - other.box.top;
      if (wide > 1 && high > 3 && one.node !== other.node) found.push(one.node.data + " overlaps " + other.node.data);
    }
  });
  return found;
}
function luminance(colour) {
  const parts = colour.match(/[0-9.]+/g).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}
function contrast(element) {
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
const closed = measure();
document.querySelectorAll("details").forEach(each => each.open = true);
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
parent.postMessage({name: document.title, width: innerWidth, dark, closed, open: measure()}, "*");
</script>
"""
FRAMES = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><pre></pre>
<script>
const all = [];
onmessage = event => { all.push(event.data); document.querySelector("pre").textContent = JSON.stringify(all); };
</script>
"""
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
WIDTHS = (400, 1000, 1600)
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.mark.parametrize("scheme", [[], [DARK]], ids=["light", "dark"])
def test_nothing_is_cut_or_overlaps(pages: dict[str, str], tmp_path: Path, scheme: list[str]) -> None:
    """Every page at the width of a phone, a window and a wide screen, its parts closed and open, by its boxes."""
    frames = FRAMES
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text.replace("</body>", f"{MEASURE}</body>"))
        frames += "".join(
            f'<iframe src="{name}.html" width="{width}" height="800" style="border: 0"></iframe>' for width in WIDTHS
        )
    for name, words in PICTURES.items():
        drawn = call(*words, "--format", "svg")[1]
        around = f'<title>{name}</title><body><div class="scroll" style="overflow: auto">{drawn}</div>{MEASURE}'
        (tmp_path / f"{name}.html").write_text(f"<!DOCTYPE html>{around}")
        frames += f'<iframe src="{name}.html" width="1000" height="800" style="border: 0"></iframe>'
    (tmp_path / "frames.html").write_text(frames)
    command = [
        *CHROMIUM,
        *scheme,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    run = subprocess.run([*command, tmp_path / "frames.html"], capture_output=True, text=True, timeout=100)
    written = re.search("<pre>(.*?)</pre>", run.stdout, re.S)
    assert written, run.stderr
    measured: list[dict[str, Any]] = json.loads(_unescaped(written[1]))
    assert sorted(each["width"] for each in measured) == sorted((*WIDTHS * len(pages), *[1000] * len(PICTURES)))
    assert {each["dark"] for each in measured} == {bool(scheme)}
    wrong = {(each["name"], each["width"]): each["closed"] + each["open"] for each in measured}
    wrong = {place: found[:5] for place, found in wrong.items() if found}
    assert not wrong, json.dumps(list(wrong.items()), indent=1)


def _unescaped(text: str) -> str:
    import html

    return html.unescape(text)


def test_a_screenshot(pages: dict[str, str], tmp_path: Path) -> None:
    """The page is drawn, as large as the window."""
    (tmp_path / "page.html").write_text(pages["triple-fault"])
    picture = tmp_path / "page.png"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    page = str(tmp_path / "page.html")
    words = [*map(str, CHROMIUM), profile, f"--screenshot={picture}", "--window-size=1000,800", page]
    subprocess.run(words, check=True, capture_output=True, timeout=100)
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[16:24] == (1000).to_bytes(4) + (800).to_bytes(4)
    assert len(data) > 20_000


@pytest.mark.parametrize(
    ("words", "title", "said"),
    [
        (["trace", OVMF, "--vector", "14", "--rsp", "0x7e00000"], "#PF on CPU 0", "SHUTDOWN: #DF cannot be delivered"),
        (["decode", "0x00af9b000000ffff"], "segment: 64-bit code, ring 0", "limit 15:0 0xffff"),
        (["decode", "0x1b", "--as", "error-code"], "error-code: ", "idt"),
    ],
)
def test_a_picture_of_a_trace_or_of_bits(words: list[object], title: str, said: str, tmp_path: Path) -> None:
    out = tmp_path / "picture.svg"
    assert call(*words, "--format", "svg", "-o", out)[:2] == (0, "")
    root = ElementTree.parse(out).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    names = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    told = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}desc")]
    assert names[0].startswith(title) and any(said in each for each in told)


def test_a_declaration_that_speaks_against_itself(tmp_path: Path) -> None:
    text = (IMAGES.parent.parent / "examples/double_fault.toml").read_text()
    (path := tmp_path / "kernel.toml").write_text(text.replace(", guard = 4096", ""))
    problems = json.loads(call("check", path, "--format", "json")[1])["problems"]
    page = call("check", path, "--format", "html")[1]
    assert all(_unescaped(re.sub("<[^>]*>", "", page)).count(problem) for problem in problems)
