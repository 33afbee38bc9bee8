"""What the documents say can be followed: their links lead somewhere, their commands and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from lfm2_export.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("*_demo/*.md")])
COMMANDS = typer.main.get_command(app)


def commands_in(text: str) -> list[list[str]]:
    """The words after every `lfm2-export` within code blocks; `a | b` are two commands."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    said = [line.removeprefix("$ ").partition(" #")[0] for line in lines]
    calls = [line.removeprefix("lfm2-export ") for line in said if line.startswith("lfm2-export ")]
    return [shlex.split(part) for call in calls for part in call.split(" | ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    broken = [link for link in targets if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path):
    for name, *words in commands_in(page.read_text()):
        assert name in COMMANDS.commands
        known = {option for parameter in COMMANDS.commands[name].params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
        assert given <= known, (name, words)


def test_the_readme_shows_commands():
    assert len(commands_in((ROOT / "README.md").read_text())) > 10
