"""lfm2_runner given a bundle's archive: what the folder says, and nothing of an archive that `bundle` did not write."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
from hostile_bundles import HOSTILE, spoiled
from runner_chat import SAID, SYSTEM, talk
from runner_program import execute, flipped, generate, need_runner
from small_bundles import archived, described

from lfm2_export import bundle
from lfm2_export.artifact.folder import Artifact

FLIPS = 120


@pytest.fixture(scope="module")
def files(small_bundle: Path) -> dict[str, bytes]:
    """The bundle's files, bundle.json first."""
    with zipfile.ZipFile(small_bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("kind", ["desktop", "android", "ios"])
def test_an_archive_says_what_the_folder_says(kind, files, small_pte, sanitized, tmp_path):
    contents = {name: data for name, data in files.items() if name != "bundle.json"}
    path = archived(described(contents, kind), tmp_path / "b.zip")
    link = tmp_path / "link"
    link.symlink_to(path)
    whole = generate(sanitized, small_pte.folder, "--draft", small_pte.folder).json()
    for given in (path, link):
        found = generate(sanitized, given, "--draft", given).json()
        for key in ("tokens", "position", "window", "vocab", "draft"):
            assert found[key] == whole[key]
    replayed = execute(sanitized, "golden", path).json()["parity"]  # the archive's own cases
    assert replayed["passed"]
    assert len(replayed["cases"]) == 3


def test_a_chat_with_an_archive_is_the_folders(talking_pte: Artifact, tmp_path: Path) -> None:
    path = bundle(talking_pte, "desktop", tmp_path / "b.zip").path
    options = ["--max-new", 12, "--system", SYSTEM, "--save-state"]
    whole = talk(talking_pte.folder, SAID[:3], *options, tmp_path / "folder")
    told = talk(path, SAID[:3], *options, tmp_path / "archive")
    assert (told.code, told.out) == (0, whole.out)
    assert (tmp_path / "archive").read_bytes() == (tmp_path / "folder").read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["archive", "b.zip", "folder"]  # nothing was unpacked


NOT_LISTED, UNSAFE = "is not listed in manifest.json", "leaves the folder or is no plain name"
OTHER_NAMES = "its files are not those that bundle.json lists"
OTHERWISE = {  # what the runner says in other words than `verify`; names that it unpacks nowhere it only compares
    "empty file": "is empty",
    "a name that is not UTF-8": "its header is not",
    "a name twice": "is there twice",
    "a name twice by case": OTHER_NAMES,
    "bundle.json twice": "is there twice",
    "a file that is also a folder": OTHER_NAMES,
    "an empty part of a path": UNSAFE,
    "a dot for a path": UNSAFE,
    "a zero byte in a name": UNSAFE,
    "a drive": NOT_LISTED,
    "a trailing dot": NOT_LISTED,
    "a device of Windows": NOT_LISTED,
    "a wildcard": NOT_LISTED,
    "text that runs backwards": NOT_LISTED,
    "a letter and its accent apart": NOT_LISTED,
    "a name of 300 letters": NOT_LISTED,
    "bundle.json a list": "it was edited",
    "bundle.json nests endlessly": "nested too deeply",
    "bundle.json huge": "at most 16777216 are read",
    "bundle.json with a key twice": "it was edited",
    "schema version as text": 'schema version "1"',
    "schema version true": "schema version true",
    "an unknown key": "'run' is no key of it",
    "a key missing": "window: bundle.json says something else",
    "half a character": "not valid JSON",
    "an unknown kind": "a bundle for 'toaster'",
    "said to be for the web": "a bundle for 'web'",
    "a negative size": "size: expected a whole number",
    "a checksum in capitals": "SHA-256 differs",
}
UNREAD = {"another end token", "an end token as text"}  # the runner takes them from where `bundle` had them
STRUCTURE = [
    name
    for name, (spoil, _) in HOSTILE.items()
    if spoil.__module__.endswith((".archive", ".description")) and name not in UNREAD
]


@pytest.mark.parametrize("name", STRUCTURE)
def test_a_hostile_archive_is_refused_in_one_line(name, files, sanitized, tmp_path):
    path, expected = spoiled(name, files, tmp_path)
    assert OTHERWISE.get(name, expected) in generate(sanitized, path).refused()


@pytest.mark.slow
def test_no_flipped_bit_of_an_archive_passes(small_bundle, sanitized, tmp_path):
    """Half of them outside the model, which is most of the bytes."""
    data = small_bundle.read_bytes()
    with zipfile.ZipFile(small_bundle) as archive:
        model = archive.getinfo("model.pte")
    chooser, path = random.Random(23), tmp_path / "b.zip"
    for number in range(FLIPS):
        at = chooser.randrange(len(data) - (model.file_size if number % 2 else 0))
        at += model.file_size if number % 2 and at >= model.header_offset else 0
        path.write_bytes(flipped(data, at, chooser.randrange(8)))
        generate(sanitized, path).refused()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
def test_no_truncated_archive_passes(share, small_bundle, sanitized, tmp_path):
    data = small_bundle.read_bytes()
    (tmp_path / "b.zip").write_bytes(data[: int(len(data) * share)])
    generate(sanitized, tmp_path / "b.zip").refused()


def test_a_bundle_in_parts_is_named_and_joined_by_hand(small_pte, small_bundle, tmp_path):
    parts = bundle(small_pte, "desktop", tmp_path / "b.parts", split=500_000).path
    said = generate(need_runner(), parts).refused()
    assert f"cat {parts}/*.zip.*" in said
    joined = b"".join(part.read_bytes() for part in sorted(parts.glob("*.zip.*")))
    assert joined == small_bundle.read_bytes()
