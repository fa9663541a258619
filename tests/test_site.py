"""The site: it builds without a warning, every link and anchor leads somewhere, nothing is loaded from elsewhere."""

import html.parser
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from x86tables.commands import names
from x86tables.config.schema import schema

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.needs("mkdocs")


class Links(html.parser.HTMLParser):
    """Where a page leads, what it loads, and the anchors that it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {given[name] or "" for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        elif tag in ("script", "img", "link") and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given.get("src") or given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr
    return {page: Links(page) for page in folder.rglob("*.html") if page.name != "404.html"}


def test_every_link_leads_somewhere(site: dict[Path, Links]) -> None:
    for page, found in site.items():
        for link in found.links:
            if "://" in link or link.startswith("mailto:"):
                continue
            target, _, anchor = link.partition("#")
            there = (page.parent / target).resolve() if target else page
            assert there in site or there.is_file(), f"{page.name}: {link}"
            assert not anchor or there not in site or anchor in site[there].anchors, f"{page.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Links]) -> None:
    for page, found in site.items():
        for link in found.loaded:
            assert not link or ("://" not in link and (page.parent / link.partition("?")[0]).is_file()), page.name


def test_every_command_has_a_page(site: dict[Path, Links]) -> None:
    pages = {page.stem for page in site if page.parent.name == "commands"}
    assert pages == set(names())
    check = next(page for page in site if page.name == "check.html" and page.parent.name == "commands").read_text()
    assert "--baseline FILE" in check and "accept the findings in the JSON of an earlier check" in check


def test_every_key_has_an_example_that_is_valid() -> None:
    """Each by itself: the rest of its table is not what it shows."""
    from jsonschema import Draft202012Validator

    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from pages import EXAMPLES  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(ROOT / "docs"))
    known: dict[str, Any] = schema()["$defs"]
    assert {name: set(examples) for name, examples in EXAMPLES.items()} == {
        name: set(table["properties"]) for name, table in known.items()
    }
    for name, examples in EXAMPLES.items():
        for key, text in examples.items():
            value = tomllib.loads(text)[key]
            validator = Draft202012Validator({"$defs": known, **known[name]["properties"][key]})
            assert not list(validator.iter_errors(value)), (name, key)


def test_the_source_of_no_page_is_forgotten(site: dict[Path, Links]) -> None:
    """Each file of docs/ is in the navigation."""
    told = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert re.search(rf": {page.relative_to(ROOT / 'docs')}$", told, re.M), page


def test_the_configuration_is_complete() -> None:
    """Without a folder on the command line, as `make docs` builds it: MkDocs accepts where it goes."""
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"))
    assert not Path(config.site_dir).is_relative_to(config.docs_dir)
    assert "mv build/site docs/site" in (ROOT / "Makefile").read_text()
