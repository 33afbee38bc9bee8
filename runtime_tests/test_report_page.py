"""A real artifact's report, looked at in headless Chromium: it renders, asks for nothing, and has its charts."""

from __future__ import annotations

import os
from pathlib import Path

import javascript
import pytest

from lfm2_export.parity.detail import Detail
from lfm2_export.parity.run import Effort, prove
from lfm2_export.report import outputs

QUICK = Effort(quality_tokens=150, questions=4, prompts=1, continuation=4, law_tokens=48)
CHARTS = [
    "Histogram of the KL divergence per token",
    "KL divergence by position in the conversation",
    "Error of each layer",
    "Drift of the state over a long conversation",
]


@pytest.fixture(scope="module")
def report(make_artifact, nano):
    return prove(make_artifact("onnx-int8", "explicit"), nano, ["onnxruntime"], QUICK, detail=Detail(drift_samples=8))


@pytest.fixture(scope="module")
def page(report, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    outputs.write(report, [path])
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
    assert seen["requests"] == 1  # the page itself
    assert seen["first"] == "verdict"
    assert "Proven" in seen["verdict"]
    assert [chart["label"] for chart in seen["charts"]] == CHARTS
    assert all(chart["drawn"] > 10 and chart["width"] > 250 for chart in seen["charts"])
    dark = scheme == "dark"
    assert (seen["background"] == "rgb(20, 23, 26)") is dark
    assert {chart["ink"] for chart in seen["charts"]} == {"rgb(231, 234, 238)" if dark else "rgb(28, 32, 36)"}
    assert not seen["sideways"]
    assert {"gates", "size"} <= seen["tables"].keys()
