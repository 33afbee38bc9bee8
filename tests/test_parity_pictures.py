"""The pictures of a report: what both sides say of them, shown on the page, or why there are none."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_reports import HOSTILE, a_report
from PIL import Image

from lfm2_export import extras, runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.nano_vl.tasks import KINDS
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.model.load import load_decoder, load_vision_encoder, open_checkpoint
from lfm2_export.parity.pictures import PictureCase, PictureCases, picture_cases
from lfm2_export.parity.report import ParityReport
from lfm2_export.report import page
from lfm2_export.runtimes.eager import EagerSession


@pytest.fixture
def sides(seeing_checkpoint: Path, seeing_artifact: Artifact) -> tuple[Any, ...]:
    """What `picture_cases` is asked with: an artifact in fp32, and eager."""
    checkpoint = open_checkpoint(str(seeing_checkpoint))
    eager = EagerSession(load_decoder(checkpoint), 128, load_vision_encoder(checkpoint))
    session = runtimes.find("onnxruntime").open_session(seeing_artifact.folder, seeing_artifact.manifest)
    return seeing_artifact, checkpoint.vision, ChatTokenizer.load(checkpoint.folder, checkpoint.config), session, eager


def test_both_sides_are_asked_about_what_is_drawn(sides: tuple[Any, ...]) -> None:
    found = picture_cases(*sides)
    assert found.reason is None
    assert len(found.cases) == len(KINDS)
    assert len({case.png for case in found.cases}) == len(KINDS)
    for case in found.cases:
        assert case.artifact == case.reference  # in fp32
        assert "?" in case.question
        picture = Image.open(io.BytesIO(base64.b64decode(case.png)))
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1


def test_why_there_are_none_is_said(sides: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, vision, tokenizer, session, eager = sides
    assert "no tokenizer" in str(picture_cases(artifact, vision, None, session, eager).reason)
    narrow = EagerSession(eager.decoder, 8, eager._encoder)
    assert "longer than the window" in str(picture_cases(artifact, vision, tokenizer, narrow, narrow).reason)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert "lfm2-export[vision]" in str(picture_cases(*sides).reason)


def with_pictures(**changes: Any) -> ParityReport:
    report = a_report()
    values = {
        "png": "iVBORw0KGgo=",
        "question": "What?",
        "drawn": "A star.",
        "reference": "A star.",
        "artifact": "A dog.",
    }
    report.runtimes[0].pictures = PictureCases(cases=[PictureCase(**(values | changes))] * 2)
    return report


def test_the_page_shows_them() -> None:
    html = page.parity_html(with_pictures())
    assert html.count('<img src="data:image/png;base64,iVBORw0KGgo="') == 2
    for text in ("What?", "A star.", "A dog.", ">differs<"):
        assert text in html
    assert ">differs<" not in page.parity_html(with_pictures(artifact="A star."))
    none = a_report()
    none.runtimes[0].pictures = PictureCases(reason="no window")
    assert "Not shown: no window" in page.parity_html(none)


def test_no_reply_becomes_markup() -> None:
    html = page.parity_html(with_pictures(question=HOSTILE, artifact=HOSTILE, png=HOSTILE))
    assert "<script" not in html
    assert escape("<script>") in html
