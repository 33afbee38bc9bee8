"""Drafts verified in one call, on every session that can: the logits of single steps, no trace of what is rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_artifacts
import pytest
import xnnpack_artifacts
from decoders import LFM3, LFM3_SHAPES, random_decoder, relative, state_error, tokens
from onnx_artifacts import lower as lower_onnx
from xnnpack_artifacts import Made
from xnnpack_artifacts import lower as lower_xnnpack

from lfm2_export.errors import RecipeError, UsageError, WindowExceededError
from lfm2_export.parity.laws import LawContext, OtherForm, state_laws
from lfm2_export.runtimes import onnxruntime
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session
from lfm2_export.targets.xnnpack.target import TARGET as XNNPACK

DRAFT = 6  # more than LFM3's window here
SHORT = "sliding alone, window 2, one KV head"
LAWS = ("verified = decoded", "rejected = never fed")
ERROR = 2e-5


def _xnnpack(folder: Path, name: str, **shape: Any) -> Session:
    options = {"max_tokens": 16, "speculation": DRAFT}
    return lower_xnnpack(xnnpack_artifacts.recipe(name, options=options), folder, **shape).session()


def _onnx(folder: Path, name: str, shape: dict[str, Any] | None = None, **options: object) -> Session:
    made_by = onnx_artifacts.recipe(name, options={"speculation": DRAFT, **options})
    return onnxruntime.RUNTIME.open_session(folder, lower_onnx(random_decoder(**shape or {}), made_by, folder))


MAKERS: dict[str, Callable[[Path], Session]] = {
    "eager": lambda folder: EagerSession(random_decoder(), 40),
    "xnnpack-fp32": lambda folder: _xnnpack(folder, "xnnpack-fp32"),
    "xnnpack-fp32 with sliding layers": lambda folder: _xnnpack(folder, "xnnpack-fp32", **LFM3),
    "xnnpack-int4": lambda folder: _xnnpack(folder, "xnnpack-int4"),
    "onnx-fp32": lambda folder: _onnx(folder, "onnx-fp32"),
    "onnx-fp32 plain conv": lambda folder: _onnx(folder, "onnx-fp32", conv="plain"),
    "onnx-fp32 with sliding layers": lambda folder: _onnx(folder, "onnx-fp32", LFM3),
    "onnx-fp32 of sliding layers, window 2": lambda folder: _onnx(folder, "onnx-fp32", LFM3_SHAPES[SHORT]),
    "onnx-int8": lambda folder: _onnx(folder, "onnx-int8"),
}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    return {name: make(tmp_path_factory.mktemp("artifact")) for name, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def session(request: pytest.FixtureRequest, sessions: dict[str, Session]) -> Session:
    found = sessions[request.param]
    found.reset()
    return found


def test_laws_hold(session: Session) -> None:
    context = LawContext(session, random_decoder().config, tokens(32), ERROR, OtherForm(None, "not made here"))
    laws = {law.name: law for law in state_laws(context)}
    assert all(laws[name].error is not None for name in LAWS)
    assert laws["rejected = never fed"].error == 0


@pytest.mark.parametrize("name", [each for each in MAKERS if "int" not in each])
def test_rows_are_those_of_single_steps(sessions: dict[str, Session], name: str) -> None:
    session = sessions[name]
    session.reset()
    session.prefill(tokens(7))
    before = session.state()
    verified = session.verify(tokens(DRAFT, seed=4))
    assert session.position == 7
    assert state_error(session.state(), before) == 0
    single = np.stack([session.decode(token) for token in tokens(DRAFT, seed=4)])
    assert relative(verified, single) < ERROR


def test_any_other_call_lets_go_of_a_draft(session: Session) -> None:
    session.prefill(tokens(5))
    there = session.state()
    for other in (session.reset, lambda: session.restore(there), lambda: session.decode(3)):
        session.verify([1, 2, 3])
        other()
        with pytest.raises(UsageError, match="to keep"):
            session.keep(1)


def test_no_more_is_kept_than_was_verified(session: Session) -> None:
    session.prefill(tokens(5))
    session.verify([1, 2, 3])
    for count in (-1, 4):
        with pytest.raises(UsageError, match="of 3 that were verified"):
            session.keep(count)
    session.keep(3)
    with pytest.raises(UsageError, match="of 0 that were verified"):
        session.keep(1)


def test_a_draft_past_the_window_or_the_limit_is_refused(session: Session) -> None:
    session.prefill(tokens(session.window - 2))
    before = session.state()
    with pytest.raises(WindowExceededError):
        session.verify([1, 2, 3])
    with pytest.raises(UsageError, match="to verify"):
        session.verify([1] * (session.verifies + 1))
    assert state_error(session.state(), before) == 0
    assert session.verify([1, 2]).shape[0] == 2


def test_a_recipe_can_leave_it_out(tmp_path: Path) -> None:
    without = xnnpack_artifacts.recipe(options={"max_tokens": 16, "speculation": 0})
    made = lower_xnnpack(without, tmp_path)
    assert [method.name for method in made.lowered.methods] == ["forward"]
    assert made.lowered.speculation == 0
    with pytest.raises(UsageError, match=r"options\.speculation"):
        made.session().verify([1])


def test_plain_onnx_is_the_graph_of_before(tmp_path: Path) -> None:
    manifest = lower_onnx(random_decoder(), onnx_artifacts.recipe(options={"speculation": 0}), tmp_path)
    conv = next(spec for spec in manifest.methods[0].outputs if spec.name.startswith("present_conv"))
    assert all(isinstance(size, int) for size in conv.shape[1:])
    with pytest.raises(UsageError, match=r"options\.speculation"):
        onnxruntime.RUNTIME.open_session(tmp_path, manifest).verify([1])


def test_weights_are_stored_once(tmp_path: Path) -> None:
    """The program's second description aside, the file is no larger."""
    wide = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}

    def size(speculation: int, folder: Path) -> int:
        folder.mkdir()
        options = {"max_tokens": 16, "speculation": speculation}
        made: Made = lower_xnnpack(xnnpack_artifacts.recipe(options=options), folder, **wide)
        return made.path.stat().st_size

    without, with_it = size(0, tmp_path / "without"), size(DRAFT, tmp_path / "with")
    assert with_it - without < 0.1 * without


def test_resident_form_has_none(tmp_path: Path) -> None:
    asked = xnnpack_artifacts.recipe(form="resident", options={"speculation": DRAFT})
    with pytest.raises(RecipeError, match="resident"):
        XNNPACK.check(asked, random_decoder().config)
