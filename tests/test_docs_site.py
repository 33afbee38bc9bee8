"""`make docs`: the site builds with no warning, so no link of it is broken, and shows itself without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from documents import PAGES, ROOT
from ruamel.yaml import YAML

_FETCHED = re.compile(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="?(?:https?:)?//', re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None:
        reason = "mkdocs-material is not installed; pip install '.[docs]'"
        if os.environ.get("CI"):
            pytest.fail(f"{reason} (in CI a test that cannot run has failed)")
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_is_there_and_in_the_navigation(site: Path):
    asked = {str(page) for page in _leaves(YAML(typ="safe").load(ROOT / "mkdocs.yml")["nav"])}
    assert len(asked) == len(PAGES)
    assert asked >= {page.name for page in PAGES if page.parent == ROOT / "docs"}
    assert all((site / page).with_suffix(".html").is_file() for page in asked)


def _leaves(entry: object) -> list[object]:
    if isinstance(entry, dict | list):
        return [leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in _leaves(part)]
    return [entry]


def test_nothing_is_fetched_from_elsewhere(site: Path):
    assert not [page.name for page in site.rglob("*.html") if _FETCHED.search(page.read_text())]
    assert not [style.name for style in site.rglob("*.css") if re.search(r"url\(.?https?:", style.read_text())]


def test_the_search_finds_what_a_page_says(site: Path):
    index = json.loads((site / "search/search_index.json").read_text())
    assert [
        entry["location"] for entry in index["docs"] if "LlmModule" in entry["text"] and "apps" in entry["location"]
    ]
