"""What the documents say can be followed: links lead somewhere, commands and options exist, code is code.

What can be pasted is pasted by test_docs_run.py.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from documents import PAGES, ROOT, SHELLS, blocks, words_of_commands
from PIL import Image
from ruamel.yaml import YAML

from lfm2_export.checkpoint.nano_vl.drawing import draw
from lfm2_export.cli.main import app

COMMANDS = typer.main.get_command(app)

# why a block is not run here: the only reasons there are, each the beginning of a note
REASONS = (
    "downloads packages",
    "sets up .venv and downloads packages",
    "minutes",
    "serves until it is stopped",
    "another checkpoint",
    "needs a phone",
    "needs a GPU",
    "needs an NVIDIA GPU",
    "needs torchvision",
    "needs Gradle, the Android SDK and a phone",
)
# a block in another language is read as that language, or tested elsewhere
LANGUAGES = {
    "python": ast.parse,
    "yaml": YAML(typ="safe").load,
    "json": json.loads,
    "text": str,
    "wgsl": str,  # runtime_tests/test_shader_fault.py
    "js": str,  # runtime_tests/test_shader_fault.py and test_apps.py
    "kotlin": str,  # runtime_tests/test_apps.py
    "cpp": str,  # runtime_tests/test_apps.py
    "swift": str,  # no compiler for it in a package registry: its page says that it was not compiled
}

EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands_in(page: Path) -> Iterator[list[str]]:
    """The words after every `lfm2-export` of the command blocks, those that are not run included."""
    for block in blocks(page):
        if block.language in SHELLS:
            for line in words_of_commands(block):
                for part in line.split(" | "):
                    if part.startswith("lfm2-export "):
                        yield shlex.split(part)[1:]


@EACH_PAGE
def test_links_lead_to_files(page: Path):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    broken = [link for link in targets if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


@EACH_PAGE
def test_links_lead_to_headings(page: Path):
    links = re.findall(r"\]\(([^)#\s]*)#([^)]*)\)", page.read_text())
    broken = [
        f"{link}#{heading}"
        for link, heading in links
        if "://" not in link and heading not in _headings(page.parent / link if link else page)
    ]
    assert broken == []


def _headings(page: Path) -> list[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@EACH_PAGE
def test_commands_and_their_options_exist(page: Path):
    for name, *words in commands_in(page):
        assert name in COMMANDS.commands
        parameters = COMMANDS.commands[name].params
        known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
        given = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
        assert given <= known, (name, words)


@EACH_PAGE
def test_every_block_is_run_or_says_why_not(page: Path):
    for block in blocks(page):
        if block.language in SHELLS:
            assert block.commands(), block.place
            assert block.why_not_run is None or block.why_not_run.startswith(REASONS), (block.place, block.note)
        else:
            assert block.language in LANGUAGES, f"{block.place}: a block without a language, or with an unknown one"
            LANGUAGES[block.language](block.text)
            assert block.why_not_run is None, f"{block.place}: only commands are not run"
    fences = len(re.findall("^```", page.read_text(), flags=re.MULTILINE))
    assert fences == 2 * len(list(blocks(page))), "a fence that the tests do not see"


@pytest.mark.parametrize("name", ["pipeline.svg", "architecture.svg"])
def test_the_drawings_are_what_their_script_draws(name: str):
    """`make pictures` draws them anew; the terminal's picture is held against README's commands, as they are run."""
    script = ROOT / "docs/pictures/make.py"
    drawn = runpy.run_path(str(script))["DRAWINGS"][name]()
    assert (script.parent / name).read_text(encoding="utf-8") == drawn


def test_the_picture_that_nano_vl_is_shown_is_what_the_script_draws():
    script = ROOT / "docs/pictures/make.py"
    drawn = draw(runpy.run_path(str(script))["SHAPES"])
    assert Image.open(script.parent / "shapes.png").tobytes() == drawn.tobytes()


def test_the_readme_shows_commands():
    assert len(list(commands_in(ROOT / "README.md"))) > 10


@pytest.mark.parametrize("task", ["An Android app", "A web page", "A laptop or a server"])
def test_a_task_of_the_readme_takes_fewer_than_ten_commands(task: str):
    parts = re.split("^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    setting_up, path = parts[0], next(part for part in parts if part.startswith(task + "\n"))
    shown = [block for block in blocks(ROOT / "README.md") if block.language in SHELLS]
    commands = [line for block in shown if block.text in setting_up + path for line in words_of_commands(block)]
    assert 3 < len(commands) < 10
