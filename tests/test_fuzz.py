"""A minute of fuzzing, from the real documents on: no bytes make a reader fail in any way but its own error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from small_bundles import described, small_contents

from lfm2_export import recipes

TARGET = Path(__file__).parent / "fuzz" / "documents.py"
SECONDS = 30  # for each of the two


def write_corpus(what: str, folder: Path) -> None:
    """The project's recipes, each also as JSON (which is YAML too); a bundle's documents."""
    folder.mkdir()
    if what == "recipe":
        for name in recipes.names():
            text = recipes.path_of(name).read_text()
            (folder / f"{name}.yaml").write_text(text)
            (folder / f"{name}.json").write_text(json.dumps(YAML(typ="safe").load(text)))
        return
    files = described(small_contents(folder.parent / "artifact"))
    for name in ("manifest.json", "bundle.json", "golden.json"):
        (folder / name).write_bytes(files[name])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["manifest", "recipe"])
def test_no_bytes_make_a_reader_crash(what: str, tmp_path: Path) -> None:
    write_corpus(what, tmp_path / "corpus")
    options = [f"-max_total_time={SECONDS}", "-timeout=300", "-rss_limit_mb=4096", "-max_len=20000", "-seed=1"]
    command = [sys.executable, str(TARGET), what, str(tmp_path / "corpus"), f"-artifact_prefix={tmp_path}/", *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None
    assert int(runs[1]) > 200, "so few runs find nothing"


def test_the_target_notices_a_crash(tmp_path: Path) -> None:
    """The same program with a reader that divides by zero: the exit code says so."""
    write_corpus("manifest", tmp_path / "corpus")
    probe = tmp_path / "broken.py"
    text = TARGET.read_text().replace("        try:\n            read(data)", "        try:\n            1 // 0")
    assert "1 // 0" in text
    probe.write_text(text)
    options = ["-runs=10", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, str(probe), "manifest", str(tmp_path / "corpus"), *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr + done.stdout
