"""The pages: nothing points nowhere, nothing is unreachable, nothing that is there is left out."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import refattn

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROSE = [*PAGES, *sorted(ROOT.glob("*.md"))]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def fences(page, directive):
    """Return (argument, body) of every fenced directive of that name."""
    pattern = rf"^```\{{{directive}\}}[ ]*(.*?)\n(.*?)^```"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(page):
    """Return the text of a page without its blocks of code and its spans of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "", text)


def listed_in(page):
    """Return the pages that the tables of contents of a page list."""
    found = set()
    for _, body in fences(page, "toctree"):
        lines = [line.strip() for line in body.splitlines()]
        for entry in (line for line in lines if line and not line.startswith(":")):
            found |= set(page.parent.glob(f"{entry}.md")) if ":glob:" in lines else {page.parent / f"{entry}.md"}
    return found


def anchors(page):
    """Return the anchors of a page's headings, as MyST and GitHub name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_reachable_from_the_index():
    reached, found = set(), {DOCS / "index.md"}
    while found - reached:
        page = (found - reached).pop()
        reached.add(page)
        found |= listed_in(page)
    assert sorted(map(name_of, reached)) == [name_of(page) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_has_one_title(page):
    lines = prose(page).splitlines()
    assert lines[0].startswith("# ") and sum(line.startswith("# ") for line in lines) == 1


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_included_file_and_object_is_there(page):
    for path, options in fences(page, "literalinclude"):
        source = (page.parent / path).resolve()
        assert source.is_file(), path
        for name in re.findall(r"^:pyobject: *(.*)$", options, re.MULTILINE):
            here = ast.parse(source.read_text(encoding="utf-8"))
            for part in name.split("."):
                inside = [node for node in here.body if getattr(node, "name", None) == part]
                assert inside, f"{path} has no {name}"
                here = inside[0]


@pytest.mark.parametrize("page", PROSE, ids=name_of)
def test_every_relative_link_points_to_something(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_export_is_on_a_page():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in refattn.__all__ if f"`{name}`" not in text] == []


def test_every_example_is_on_a_page():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f"examples/{path.name}" not in text] == []


@pytest.mark.slow
def test_the_docs_build_without_a_warning(tmp_path):
    missing = [package for package in ("sphinx", "myst_parser") if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f'{", ".join(missing)} not installed: python -m pip install ".[docs]"')
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "trees"]
    built = subprocess.run([*command, DOCS, tmp_path / "html"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = [(tmp_path / "html" / page.relative_to(DOCS)).with_suffix(".html") for page in PAGES]
    assert [page.name for page in pages if not page.is_file()] == []
