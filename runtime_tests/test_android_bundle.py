"""A bundle as Android's library reads it: verified, proven on the real `.pte`, refused where it is altered."""

from __future__ import annotations

import random

import android_bundle
import pytest
from android_cases import EACH_MODEL, EITHER_FORM
from android_tools import Refused

from lfm2_export.bundle.pack import bundle
from lfm2_export.bundle.verify import verify

pytestmark = pytest.mark.slow  # Kotlin is compiled first


@EITHER_FORM
@EACH_MODEL
def test_bundle_made_by_python_is_read_and_verified(form, source, bundled, kotlin, tmp_path):
    artifact, files, _ = bundled(form, source)
    android_bundle.write_archive(files, tmp_path / "bundle.zip")
    target = tmp_path / "unpacked"
    kotlin("unpack", archive=str(tmp_path / "bundle.zip"), target=str(target))
    assert {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()} == files
    state = sum(spec.written for spec in artifact.manifest.methods[0].inputs)
    assert kotlin("open", folder=str(target)) == {"form": form, "window": artifact.manifest.window, "state": state}


def test_the_command_bundles_what_the_app_reads_of_lfm3(bundled, kotlin, tmp_path):
    artifact, _, _ = bundled("explicit", "nano-lfm3")
    made = bundle(artifact, "android", tmp_path / "bundle.zip")
    verify(made.path)
    kotlin("unpack", archive=str(made.path), target=str(tmp_path / "unpacked"))
    kinds = artifact.manifest.source.config["layer_types"]
    state = sum(1 if kind == "conv" else 2 for kind in kinds)
    found = kotlin("open", folder=str(tmp_path / "unpacked"))
    assert found == {"form": "explicit", "window": artifact.manifest.window, "state": state}


def test_altered_archives_are_refused(bundled, kotlin, tmp_path):
    _, files, _ = bundled("explicit")
    archive, target = tmp_path / "bundle.zip", tmp_path / "unpacked"
    android_bundle.write_archive(files, archive)
    sound = archive.read_bytes()
    pick = random.Random(7)
    refused = 0
    for _ in range(300):
        bent = bytearray(sound)
        # most flips near the beginning and the end, where headers and the small files are
        start, end = pick.choice([(0, 8000), (len(sound) - 60000, len(sound)), (0, len(sound))])
        bent[pick.randrange(start, end)] ^= 1 << pick.randrange(8)
        archive.write_bytes(bent)
        try:
            kotlin("unpack", archive=str(archive), target=str(target))
            kotlin("open", folder=str(target))
        except Refused:
            refused += 1
        else:  # a byte that nothing depends on: a date, the directory at the end
            unpacked = {name: (target / name).read_bytes() for name in files if name != "bundle.json"}
            assert unpacked == {name: content for name, content in files.items() if name != "bundle.json"}
    assert refused > 150


def test_a_16_bit_cache_is_refused_with_the_remedy(make_artifact, tokenizer, kotlin, tmp_path):
    files = android_bundle.bundle_files(make_artifact("xnnpack-int8", "explicit", "cache=bfloat16"), tokenizer)
    with pytest.raises(Refused, match="cache=float32"):
        kotlin("open", folder=str(android_bundle.write_folder(files, tmp_path)))


@EITHER_FORM
@EACH_MODEL
def test_parity_check_passes_on_the_real_program(form, source, bundled, kotlin, runtime, tmp_path):
    artifact, files, _ = bundled(form, source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    report = kotlin("parity", runtime(artifact), folder=str(folder), shared=str(tmp_path))
    assert report["passed"], report["lines"]
    assert report["error"] < 1e-6  # the same runtime as the golden cases'
    assert report["same"] == report["steps"] > 20


def test_parity_check_notices_another_model(bundled, make_artifact, kotlin, runtime, tmp_path):
    _, files, _ = bundled("explicit")
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    other = make_artifact("xnnpack-int4", "explicit")
    report = kotlin("parity", runtime(other), folder=str(folder), shared=str(tmp_path))
    assert not report["passed"]
    assert "FAIL" in report["lines"][0]
