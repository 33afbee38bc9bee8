"""A real artifact's report, looked at in headless Chromium: it renders, asks for nothing, and has its charts."""

from __future__ import annotations

import os
from pathlib import Path

import javascript
import pictures
import pytest

from lfm2_export.bench.report import BenchReport, ContenderReport, Speed, Spread
from lfm2_export.checkpoint.nano_vl.drawing import draw, png
from lfm2_export.checkpoint.nano_vl.scenes import CELL
from lfm2_export.checkpoint.nano_vl.tasks import picture_questions
from lfm2_export.parity.detail import Detail
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.pictures import PictureCase, PictureCases
from lfm2_export.parity.prove import prove
from lfm2_export.report import outputs

QUICK = Effort(quality_tokens=150, questions=4, prompts=1, continuation=4, law_tokens=48)
CHARTS = [
    "Histogram of the KL divergence per token",
    "KL divergence by position in the conversation",
    "Error of each layer",
    "Drift of the state over a long conversation",
    "Decode speed by context",
    "Prefill speed by prompt",
]
CONTENDERS = ("nano xnnpack-int4", "nano xnnpack-int8", "llama.cpp Q4_0", "my_$model$ <b>")


SCENES = [question.scene for question in picture_questions(3, 5)]


@pytest.fixture(scope="module")
def proven(make_artifact, nano):
    """Of nano, as it is; in full where a picture of it is kept."""
    made = make_artifact("onnx-int8", "explicit")
    effort, detail = (Effort(name="full"), Detail()) if pictures.BEING_KEPT else (QUICK, Detail(drift_samples=8))
    return prove(made, nano, ["onnxruntime"], effort, detail=detail)


@pytest.fixture(scope="module")
def report(proven):
    """The pictures and what is said of them are made up."""
    found = proven.model_copy(deep=True)
    found.runtimes[0].pictures = PictureCases(
        cases=[
            PictureCase(png=png(draw(scene)), question="What?", drawn="A star.", reference="A star.", artifact="A dog.")
            for scene in SCENES
        ]
    )
    return found


@pytest.fixture(scope="module")
def speeds() -> BenchReport:
    """Four contenders at three contexts, the last of which one of them does not hold."""

    def at(tokens: int, typical: float | None) -> Speed:
        if typical is None:
            return Speed(tokens=tokens, status="window")
        spread = Spread(median=typical, min=0.9 * typical, max=1.1 * typical, n=3)
        return Speed(tokens=tokens, status="measured", tokens_per_second=spread)

    some = Spread(median=1, min=1, max=1, n=3)
    contenders = [
        ContenderReport(
            name=name,
            kind="artifact",
            runtime="executorch",
            random_weights=False,
            window=1024,
            size_bytes=10**6,
            load_seconds=some,
            baseline_rss_bytes=some,
            peak_rss_bytes=some,
            decode=[at(128, 90 - 9 * rank), at(512, 80 - 9 * rank), at(1024, None if rank == 2 else 60 - 9 * rank)],
            prefill=[at(128, 400 + 50 * rank), at(512, 500 + 50 * rank), at(1024, None)],
        )
        for rank, name in enumerate(CONTENDERS)
    ]
    machine = {"processor": "a processor"}
    return BenchReport(
        machine=machine,
        versions={},
        threads=2,
        rounds=3,
        steps=8,
        bandwidth_bytes_per_second=some,
        contenders=contenders,
    )


@pytest.fixture(scope="module")
def page(report, speeds, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    outputs.write(report, [path], speeds)
    return path


def test_details_are_of_the_artifact_and_honest_about_their_effort(report, nano):
    found = report.runtimes[0].details
    assert len(found.tokens.kld) == report.runtimes[0].quality.tokens
    assert sum(found.tokens.kld) / len(found.tokens.kld) == pytest.approx(report.runtimes[0].quality.mean_kld, rel=1e-3)
    assert [each.layer for each in found.layers] == list(range(nano.config.num_hidden_layers))
    assert all(0 < each.lowering < 0.1 and 0 < each.quantization < 0.1 for each in found.layers)
    assert (found.drift.asked, found.drift.steps) == (2000, 320)
    assert found.drift.reason == "the window holds 320 tokens"
    assert [sample.step for sample in found.drift.samples] == [40, 80, 120, 160, 200, 240, 280, 320]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)])
def test_the_page_in_a_browser(page, scheme, width):
    folder = os.environ.get("LFM2_SCREENSHOTS")  # to look at them
    job = {"file": str(page), "scheme": scheme, "width": width}
    seen = javascript.run("report.mjs", job | ({"screenshot": f"{folder}/{scheme}-{width}.png"} if folder else {}))
    assert (seen["complaints"], seen["scripts"]) == ([], 0)
    assert seen["pictures"] == [[CELL * scene.columns, CELL * scene.rows] for scene in SCENES]
    assert seen["requests"] == 1  # the page itself
    assert seen["first"] == "verdict"
    assert "Proven" in seen["verdict"]
    assert [chart["label"] for chart in seen["charts"]] == CHARTS
    assert all(chart["drawn"] > 10 and chart["width"] > 250 for chart in seen["charts"])
    speed_charts = seen["charts"][-2:]
    assert all(set(CONTENDERS) <= set(chart["texts"]) for chart in speed_charts)
    assert all(len(set(chart["lines"])) >= len(CONTENDERS) for chart in speed_charts)  # a colour for each
    dark = scheme == "dark"
    assert (seen["background"] == "rgb(20, 23, 26)") is dark
    assert {chart["ink"] for chart in seen["charts"]} == {"rgb(231, 234, 238)" if dark else "rgb(28, 32, 36)"}
    assert not seen["sideways"]
    assert {"gates", "size"} <= seen["tables"].keys()


def test_a_picture_of_the_report(proven, tmp_path):
    outputs.write(proven, [tmp_path / "report.html"])
    job = {"file": str(tmp_path / "report.html"), "scheme": "light", "width": 1000}
    seen = javascript.run("report.mjs", job | {"screenshot": str(tmp_path / "shot.png")})
    assert "Proven" in seen["verdict"]
    assert [chart["label"] for chart in seen["charts"]] == CHARTS[:4]
    assert pictures.taken(tmp_path / "shot.png", "report.png", height=1300).size == (1000, 1300)
