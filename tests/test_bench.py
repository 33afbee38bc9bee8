"""The benchmark command: what it reports, compares and draws. Never how fast anything is."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from command import QUICK, code_of

from lfm2_export import runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.bench.bytes_read import cache_bytes, weight_bytes
from lfm2_export.bench.quiet import collect
from lfm2_export.bench.report import BenchReport
from lfm2_export.bench.spec import parse, through
from lfm2_export.bench.stages import STAGES, shares
from lfm2_export.errors import UsageError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.plots.benchmark import figure


@pytest.fixture(scope="module")
def report(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchReport:
    """The artifact, another one and the eager model, by the command; one context does not fit the artifacts."""
    other = shutil.copytree(small_onnx, tmp_path_factory.mktemp("other") / "another")
    against = ("--vs", str(other), "--vs", "eager:nano")
    line = ["bench", str(small_onnx), *against, *QUICK, "--contexts", "32,128", "--json"]
    done = subprocess.run([sys.executable, "-m", "lfm2_export", *line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return BenchReport.model_validate_json(done.stdout)


def test_the_report_says_everything_about_every_contender(report, small_onnx):
    manifest = open_artifact(small_onnx).manifest
    model = manifest.methods[0].file
    for each in report.contenders[:2]:
        assert each.size_bytes == sum(e.size for name, e in manifest.files.items() if name.startswith(model))
        assert each.decode[0].bytes_per_token == weight_bytes(manifest) + 32 * cache_bytes(manifest)
    assert [each.name for each in report.contenders] == ["nano-onnx-int4", "another", "eager bf16 nano"]
    assert (report.threads, report.rounds, report.random_weights) == (1, 1, False)
    assert report.bandwidth_bytes_per_second.median > 1e8
    assert {"torch", "onnxruntime"} <= report.versions.keys()
    for each in report.contenders:
        assert each.load_seconds.n == each.peak_rss_bytes.n == report.rounds
        assert each.peak_rss_bytes.median - each.baseline_rss_bytes.median > each.size_bytes / 2  # it was loaded
        assert each.prefill[0].tokens_per_second.n >= 1
        step = each.decode[0]
        read = step.bytes_per_token * step.tokens_per_second.median
        assert step.bandwidth_share == pytest.approx(read / report.bandwidth_bytes_per_second.max)
    assert report.contenders[0].runtime.startswith("onnxruntime")
    assert report.contenders[2].runtime.startswith("transformers")


def test_ratios_are_against_the_first(report):
    first, other = (each.decode[0] for each in report.contenders[:2])
    assert first.ratio == 1
    assert other.ratio == other.tokens_per_second.median / first.tokens_per_second.median


def test_a_context_past_the_window_is_reported_as_such(report):
    statuses = [[speed.status for speed in each.decode] for each in report.contenders]
    assert statuses == [["measured", "window"], ["measured", "window"], ["measured", "measured"]]


def test_a_resident_pte_is_measured_too(tmp_path, capsys):
    output = tmp_path / "resident"
    export("nano", "xnnpack-int8", output, overrides=["window=96", "form=resident"], verify=False)
    assert code_of("bench", str(output), *QUICK, "--json") == 0
    (contender,) = json.loads(capsys.readouterr().out)["contenders"]
    assert contender["runtime"].startswith("executorch")
    assert [speed["status"] for speed in contender["decode"]] == ["measured", "measured"]


def test_the_tables_and_the_svg_name_what_was_measured(small_onnx, tmp_path, capsys):
    plot = tmp_path / "speed.svg"
    options = (*QUICK, "--draft", "lookup", "--plot", str(plot))
    assert code_of("bench", str(small_onnx), "--vs", str(small_onnx), *options) == 0
    shown = capsys.readouterr().out
    for expected in (
        "with drafts (lookup)",
        "accepted",
        "decode",
        "prefill",
        "tok/s",
        "× first",
        "of memory",
        "GB/s",
        "peak MB",
        "onnxruntime",
    ):
        assert expected in shown
    drawn = plot.read_text()
    for expected in ("context (tokens)", "prompt (tokens)", "tokens per second", "nano-onnx-int4 (2)", "1 thread"):
        assert expected in drawn
    assert [path.name for path in tmp_path.iterdir()] == ["speed.svg"]


def test_a_drafted_reply_is_measured_beside_the_plain_one(small_onnx, capsys):
    """In int4 with rounded inputs a close call may fall the other way: whether it did is in the report."""
    assert code_of("bench", str(small_onnx), *QUICK, "--draft", "lookup", "--json") == 0
    (contender,) = json.loads(capsys.readouterr().out)["contenders"]
    reply = contender["drafted"]
    assert 0 <= reply["accepted"] <= reply["drafted"]
    assert reply["seconds"] > 0
    assert reply["plain_seconds"] > 0
    assert isinstance(reply["same_text"], bool)


def test_the_picture_has_two_panels_and_a_line_per_contender(report, tmp_path):
    from lfm2_export.plots.files import write

    drawing = figure(report)
    assert [axes.get_title() for axes in drawing.axes[:2]] == ["decode", "prefill"]
    assert all(len(axes.containers) == 3 for axes in drawing.axes[:2])
    unknown = [contender.model_copy(update={"stages": None}) for contender in report.contenders]
    assert len(figure(report.model_copy(update={"contenders": unknown})).axes) == 2
    write(figure(report), tmp_path / "speed.png", force=False)
    content = (tmp_path / "speed.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > height > 300


def test_a_profiled_decode_step_is_cut_into_stages(report):
    first, other, eager = (each.stages for each in report.contenders)
    assert eager is None  # no profiler was asked
    for stages in (first, other):
        assert list(stages) == list(STAGES)
        assert sum(stages.values()) == pytest.approx(1)
        assert min(stages.values()) > 0
    (panel,) = figure(report).axes[2:]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == list(STAGES)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["nano-onnx-int4", "another"]


def test_stages_are_told_by_operator_and_place_and_leave_the_first_calls_out():
    def event(name: str, kind: str, duration: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": {"op_name": kind}, "dur": duration}

    call = [
        event("layers.0.conv.in_proj/MatMulNBits", "MatMulNBits", 40),
        event("layers.0.conv/CausalConvWithState", "CausalConvWithState", 10),
        event("layers.1.self_attn/GroupQueryAttention", "GroupQueryAttention", 20),
        event("lm_head/MatMulNBits", "MatMulNBits", 25),
        event("embedding_norm/norm", "SkipSimplifiedLayerNormalization", 5),
        {"cat": "Session", "name": "model_run", "dur": 900},
    ]
    first = [{**each, "dur": 7000} for each in call]
    assert shares([*first, *call, *call], skip=1) == {
        "matmul": 0.4,
        "head": 0.25,
        "attention": 0.2,
        "conv": 0.1,
        "other": 0.05,
    }


def test_random_weights_are_said_on_the_picture(report):
    contender = report.contenders[0].model_copy(update={"random_weights": True})
    assert "random weights" in figure(report.model_copy(update={"contenders": [contender]})).get_suptitle()
    assert "random weights" not in figure(report).get_suptitle()


def test_bytes_per_token_follow_the_recipe(small_onnx):
    """Of nano at int4 in groups of 32, counted from its checkpoint: half a byte a weight, and an fp32 scale a group."""
    nano = open_checkpoint("nano")
    shapes = {name: tensor.shape for name, tensor in nano.tensors()}
    linears = [shape for name, shape in shapes.items() if len(shape) == 2]  # the tied head is the embedding's matrix
    weights = sum(math.prod(shape) for shape in linears)
    manifest = open_artifact(small_onnx).manifest
    assert weight_bytes(manifest) == weights // 2 + 4 * weights // 32
    floats = manifest.model_copy(update={"recipe": manifest.recipe | {"quantization": []}})
    assert weight_bytes(floats) == 4 * weights
    keys = [shape for name, shape in shapes.items() if name.endswith(("k_proj.weight", "v_proj.weight"))]
    assert cache_bytes(manifest) == 4 * sum(rows for rows, _ in keys)


def test_any_runtime_of_the_artifact_can_be_named_but_an_emulator(small_onnx, monkeypatch):
    spec = parse(str(small_onnx))
    packed = through(spec, "onnxruntime-packed")
    assert (packed.kind, packed.runtime, packed.name) == (
        "artifact",
        "onnxruntime-packed",
        f"{spec.name} onnxruntime-packed",
    )
    monkeypatch.setattr(type(runtimes.find("onnxruntime-packed")), "emulates", "CPU")
    with pytest.raises(UsageError, match="emulates a processor, so its speed says nothing"):
        through(spec, "onnxruntime-packed")


def test_noisy_samples_are_taken_again_and_kept_apart(monkeypatch):
    from lfm2_export.bench import quiet

    others = iter([0.0, 9.0, 9.0, 9.0])  # CPU seconds of the machine, read before and after each of two samples
    monkeypatch.setattr(quiet, "_busy", lambda: next(others))
    durations = iter([1.0, 2.0])
    samples = collect(lambda: next(durations), wanted=1)
    assert (samples.noisy, samples.quiet) == ([1.0], [2.0])
