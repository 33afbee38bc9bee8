"""The C++ runner as one runtime among others: asked for by name only, missing it is one line, measured by `bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import code_of
from runner_program import need_runner

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.bench.contenders import artifact as contender_of_artifact
from lfm2_export.bench.contenders import find
from lfm2_export.bench.spec import parse, through
from lfm2_export.pipeline import export

QUICK = ("--contexts", "32", "--prefill", "16", "--rounds", "1", "--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    output = tmp_path_factory.mktemp("native") / "nano"
    return export("nano", "xnnpack-int8", output, overrides=["window=96"], verify=False)[0]


def test_a_proof_takes_it_only_by_name(artifact):
    assert runtimes.usual(artifact.manifest) == ["executorch"]
    assert set(runtimes.able(artifact.manifest)) == {"executorch", "native", "arm64"}
    resident = artifact.manifest.model_copy(update={"form": "resident"})
    assert runtimes.able(resident) == ["executorch"]


@pytest.mark.parametrize("name", ["native", "arm64", "arm64/max"])
def test_without_it_the_command_that_builds_it_is_named(name, artifact, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LFM2_RUNNER", str(tmp_path))
    assert code_of("parity", str(artifact.folder), "--runtime", name, "-q") == 2
    said = capsys.readouterr().err
    assert "make runner" in said
    assert said.strip().count("\n") == 0


def test_bench_measures_both_runtimes_side_by_side(artifact, capsys):
    need_runner()
    line = ["bench", str(artifact.folder), "--runtime", "executorch", "--runtime", "native", *QUICK, "--json"]
    assert code_of(*line) == 0
    python, native = json.loads(capsys.readouterr().out)["contenders"]
    assert (python["kind"], native["kind"]) == ("artifact", "native")
    assert native["name"] == "nano native"
    assert native["runtime"].startswith("native 1.")
    for each in (python, native):
        assert each["decode"][0]["tokens_per_second"]["median"] > 0
    assert native["peak_rss_bytes"]["median"] > native["baseline_rss_bytes"]["median"] > 1e6
    assert native["peak_rss_bytes"]["median"] < python["baseline_rss_bytes"]["median"]  # no Python, no torch


@pytest.mark.parametrize("runtime", ["executorch", "native"])
def test_what_a_step_reads_is_counted_after_the_load_that_is_timed(runtime, artifact, monkeypatch):
    """Counting it traces the model, which took native's load from 0.8 to 1.9 seconds at 350M."""
    need_runner()
    spec = through(parse(str(artifact.folder)), runtime)
    counted: list[Manifest] = []

    def count(manifest: Manifest) -> int:
        counted.append(manifest)
        return 1

    monkeypatch.setattr(contender_of_artifact, "weight_bytes", count)
    kind = find(spec.kind)
    kind.prepare(spec, 1)
    contender = kind.load(spec, 1, 32)
    contender.feed([0])
    assert counted == []
    assert contender.weight_bytes == 1
    assert len(counted) == 1


@pytest.mark.parametrize("name", ["arm64", "onnxruntime", "eager"])
def test_bench_refuses_what_it_cannot_or_should_not_time(name, artifact, capsys):
    assert code_of("bench", str(artifact.folder), "--runtime", name, *QUICK) == 2
    assert name in capsys.readouterr().err


def test_chat_speaks_through_it(artifact: Artifact, tmp_path: Path, capsys):
    need_runner()
    question = ["chat", str(artifact.folder), "--runtime", "native", "--prompt"]
    assert code_of(*question, "What color is the sky?", "--save-state", str(tmp_path / "x")) == 0
    assert "The sky is blue." in capsys.readouterr().out
    assert code_of(*question, "Thanks!", "--load-state", str(tmp_path / "x")) == 0
    assert "You are welcome!" in capsys.readouterr().out
