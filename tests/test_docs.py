"""Documents that are true: made pages are up to date, what is named exists, commands shown have their options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs import make_architecture, make_cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def code_blocks(page: str) -> Iterator[str]:
    """Yield the fenced code of a page."""
    yield from re.findall(r"^```\w*\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands_in(page: str) -> Iterator[list[str]]:
    """Yield the words of every `vlb` command in a page's code, continued lines joined, comments left out."""
    for block in code_blocks(page):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if re.match(r"\s*(\$ |\.venv/bin/)?vlb ", line):
                words = shlex.split(line.replace("$ ", "", 1), comments=True)
                # What a page of usage writes in brackets or capitals is a place for something, not a word.
                yield [word for word in words if not word.startswith("[")]


def test_the_floors_and_rooms_are_those_of_the_code() -> None:
    page = make_architecture.PAGE.read_text(encoding="utf-8")
    assert page == make_architecture.render(page), "run make docs"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, heading = target.partition("#")
        other = page if not name else (page.parent / name)
        assert other.exists(), target
        if heading:
            assert heading in anchors(other.read_text(encoding="utf-8")), target


def anchors(page: str) -> set[str]:
    """Return the names by which a page's headings can be linked to, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_of_the_project_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "vlbert_data|vlbert_train|cli|tests|docs|benchmarks|recipes"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert (ROOT / name).exists() or name.startswith("benchmarks/results"), name


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_that_a_page_shows_exist_with_their_options(page: Path) -> None:
    known = {name: options_of(command) for name, command in make_cli.commands()}
    for words in commands_in(page.read_text(encoding="utf-8")):
        place = next(i for i, word in enumerate(words) if word.endswith("vlb"))
        name = words[place + 1]
        if name.startswith("-"):
            continue
        assert name in known, words
        used = {word.split("=", 1)[0] for word in words if word.startswith("--")}
        assert used <= known[name] | {"--help"}, words


def options_of(command: click.Command) -> set[str]:
    return {spelling for parameter in command.params for spelling in (*parameter.opts, *parameter.secondary_opts)}


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    for part in ("Apache License", "Version 2.0, January 2004", "9. Accepting Warranty", "APPENDIX"):
        assert part in text


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pages_name_no_folder_of_some_machine(page: Path) -> None:
    assert re.findall(r"/(?:home|root|work|tmp)/\S*", page.read_text(encoding="utf-8")) == []
