"""lfm2_runner: the conversation it leads, what it samples, what it saves and how it replays golden cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runner_program import edit_manifest, execute, need_runner

from lfm2_export import load_state, save_state
from lfm2_export.artifact.folder import Artifact
from lfm2_export.bundle.golden import golden_cases
from lfm2_export.chat.generation import generate
from lfm2_export.chat.sampling import MinPSampler
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.pipeline import export
from lfm2_export.runtimes import executorch, native
from lfm2_export.runtimes.session import Session

WINDOW = 96
PROMPT = [1, 6, 40, 73, 12, 300, 7, 5]


MODELS = [("nano", "float32"), ("nano", "bfloat16"), ("nano-lfm3", "float16")]


@pytest.fixture(scope="module", params=MODELS, ids=" ".join)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An LFM2 or LFM3 in int8, the cache in each type that a recipe may ask for."""
    source, cache = request.param
    overrides = [f"window={WINDOW}", f"cache={cache}", "options.max_tokens=32"]
    output = tmp_path_factory.mktemp("runner") / source
    return export(source, "xnnpack-int8", output, overrides=overrides, verify=False)[0]


@pytest.fixture(scope="module")
def golden(artifact: Artifact) -> dict[str, Any]:
    """Golden cases as a bundle holds them, answered by ExecuTorch's Python runtime."""
    tokenizer = ChatTokenizer.load(artifact.folder, from_dict(artifact.manifest.source.config, "manifest"))
    assert tokenizer is not None
    return golden_cases(artifact, tokenizer)


def open_native(artifact: Artifact) -> native.RunnerSession:
    need_runner()
    return native.RUNTIME.open_session(artifact.folder, artifact.manifest)


def command(artifact: Artifact, *words: object, tokens: list[int] = PROMPT) -> dict[str, Any]:
    line = ["generate", artifact.folder, "--tokens", ",".join(map(str, tokens)), *map(str, words)]
    return execute(need_runner(), *line).json()


def test_greedy_text_is_that_of_the_session(artifact):
    report = command(artifact, "--greedy", "--max-new", 20)
    session = open_native(artifact)
    assert report["tokens"] == list(generate(session, PROMPT, [7], 20))
    assert report["position"] == session.position
    assert report["prefill"]["tokens"] == len(PROMPT)
    assert report["decode"]["tokens"] == len(report["tokens"]) + report["stopped"]
    for figure in ("prefill", "decode"):
        assert report[figure]["tokens_per_second"] > 0
    assert report["peak_bytes"] > report["baseline_bytes"] > 1e6
    assert report["load_seconds"] > 0


@pytest.mark.parametrize("options", [["--greedy"], ["--temperature", 0.8, "--seed", 4]], ids=["greedy", "sampled"])
@pytest.mark.parametrize("source", ["lookup", "itself"])
def test_drafts_leave_the_text_as_it_is(artifact, source, options):
    again = [*PROMPT, *PROMPT, *PROMPT[:4]]
    plain = command(artifact, *options, "--max-new", 30, "--stop", "none", tokens=again)
    given = artifact.folder if source == "itself" else source
    drafted = command(artifact, *options, "--max-new", 30, "--stop", "none", "--draft", given, tokens=again)
    assert drafted["tokens"] == plain["tokens"]
    assert drafted["position"] == plain["position"]
    assert "draft" not in plain
    if options == ["--greedy"]:
        assert 0 < drafted["draft"]["accepted"] <= drafted["draft"]["drafted"]


def test_what_a_draft_leaves_is_to_the_bit_what_was_said(artifact):
    session = open_native(artifact)
    session.prefill(PROMPT)
    before, steps = session.state(), [session.decode(token) for token in (5, 9)]
    session.restore(before)
    rows = session.verify([5, 9, 300, 12])
    assert all(np.abs(rows[n] - step).max() < 0.1 * np.abs(step).max() for n, step in enumerate(steps))
    session.keep(0)
    assert all(
        np.array_equal(a, b) for a, b in zip(before.tensors.values(), session.state().tensors.values(), strict=True)
    )
    states = []
    for wrong in ([300, 12], [7, 41]):
        session.restore(before)
        session.verify([5, 9, *wrong])
        session.keep(2)
        states.append([*session.state().tensors.values(), session.decode(3)])
    assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))
    with pytest.raises(UsageError, match="of 0 that were verified"):
        session.keep(1)


def replayed(session: Session, sampler: MinPSampler, seed: int, count: int) -> list[int]:
    """What the runner's sampler must choose: sampling.py's weights, MT19937's 53-bit reals as numpy draws them."""
    random = np.random.RandomState(seed)
    seen, made, logits = list(PROMPT), [], session.prefill(PROMPT)
    for _ in range(count):
        scores = logits.astype(np.float64)
        repeated = np.unique(seen)
        some = scores[repeated]
        scores[repeated] = np.where(some > 0, some / sampler.repetition_penalty, some * sampler.repetition_penalty)
        weights = np.exp((scores - scores.max()) / sampler.temperature)
        weights[weights < sampler.min_p] = 0
        token = int(np.searchsorted(np.cumsum(weights), random.random_sample() * weights.sum(), side="right"))
        seen.append(token)
        made.append(token)
        logits = session.decode(token)
    return made


@pytest.mark.parametrize(
    ("temperature", "min_p", "penalty", "seed"),
    [(0.3, 0.15, 1.05, 0), (1.5, 0.0, 1.0, 3), (4.0, 0.01, 1.3, 2**32 - 1), (0.7, 1.0, 2.0, 5)],
)
def test_sampling_is_temperature_min_p_and_repetition_penalty(artifact, temperature, min_p, penalty, seed):
    options = ["--temperature", temperature, "--min-p", min_p, "--repetition-penalty", penalty, "--seed", seed]
    report = command(artifact, *options, "--max-new", 40, "--stop", "none")
    sampler = MinPSampler(temperature, min_p, penalty)
    assert report["tokens"] == replayed(open_native(artifact), sampler, seed, 40)


def test_without_options_it_samples_as_lfm2s_cards_recommend(artifact):
    defaults = command(artifact, "--max-new", 12, "--stop", "none")
    named = ["--temperature", 0.3, "--min-p", 0.15, "--repetition-penalty", 1.05, "--seed", 0]
    assert defaults["tokens"] == command(artifact, *named, "--max-new", 12, "--stop", "none")["tokens"]
    wild = ["--temperature", 3, "--min-p", 0, "--stop", "none"]
    hot = [command(artifact, *wild, "--seed", seed)["tokens"] for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_a_stop_token_ends_it_and_the_window_too(artifact):
    tokens = command(artifact, "--greedy", "--stop", "none", "--max-new", 6)["tokens"]
    report = command(artifact, "--greedy", "--stop", tokens[3], "--max-new", 6)
    assert (report["tokens"], report["stopped"]) == (tokens[: tokens.index(tokens[3])], True)
    full = command(artifact, "--greedy", "--stop", "none", "--max-new", 1000)
    assert (full["position"], full["stopped"]) == (WINDOW, False)
    assert len(full["tokens"]) == WINDOW - len(PROMPT)


def test_a_saved_state_goes_on_to_the_bit(artifact, tmp_path):
    """Half, saved, loaded and on = the whole, in the runner and, from the same file, in Python."""
    whole = command(artifact, "--greedy", "--stop", "none", "--max-new", 20, "--save-state", tmp_path / "whole")
    command(artifact, "--greedy", "--max-new", 0, "--save-state", tmp_path / "half", tokens=PROMPT[:5])
    options = ["--greedy", "--stop", "none", "--max-new", 20]
    resumed = ["--load-state", tmp_path / "half", "--save-state", tmp_path / "again"]
    # cut at the same place, so that the same products are formed
    straight = open_native(artifact)
    straight.prefill(PROMPT[:5])
    logits, expected = straight.prefill(PROMPT[5:]), []
    for _ in range(20):
        expected.append(int(np.argmax(logits)))
        logits = straight.decode(expected[-1])
    assert command(artifact, *options, *resumed, tokens=PROMPT[5:])["tokens"] == expected
    saved = load_state(tmp_path / "again", artifact)
    assert list(saved.tokens) == PROMPT + expected
    for name, tensor in straight.state().tensors.items():
        np.testing.assert_array_equal(saved.snapshot.tensors[name], tensor)
    assert list(load_state(tmp_path / "whole", artifact).tokens) == PROMPT + whole["tokens"]


def test_a_state_saved_by_python_goes_on_in_the_runner(artifact, tmp_path):
    session = executorch.RUNTIME.open_session(artifact.folder, artifact.manifest)
    session.prefill(PROMPT[:5])
    save_state(
        tmp_path / "x.state", session.state(), artifact, PROMPT[:5], messages=[{"role": "user", "content": "é\x7f"}]
    )
    continued = open_native(artifact)
    continued.restore(session.state())
    expected = int(np.argmax(continued.prefill(PROMPT[5:])))
    options = ["--greedy", "--stop", "none", "--max-new", 1, "--load-state", tmp_path / "x.state"]
    assert command(artifact, *options, tokens=PROMPT[5:])["tokens"] == [expected]


def test_a_state_is_not_written_over_another(artifact, tmp_path):
    (tmp_path / "x").write_text("precious")
    line = ["generate", artifact.folder, "--tokens", "1", "--save-state", tmp_path / "x"]
    assert "exists already" in execute(need_runner(), *line).refused()
    assert (tmp_path / "x").read_text() == "precious"
    command(artifact, "--save-state", tmp_path / "x", "--force")
    assert load_state(tmp_path / "x", artifact).snapshot.position > len(PROMPT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


@pytest.mark.parametrize("wrong", ["window", "model"])
def test_a_state_of_another_window_or_artifact_is_refused(artifact, tmp_path, wrong):
    command(artifact, "--max-new", 2, "--save-state", tmp_path / "x")
    overrides = [f"window={WINDOW // 2 if wrong == 'window' else WINDOW}", "options.max_tokens=32"]
    other, _ = export(
        artifact.manifest.source.name, "xnnpack-int4", tmp_path / "other", overrides=overrides, verify=False
    )
    if wrong == "window":  # the same file, so that only the window differs
        edit_manifest(other.folder, files={"model.pte": artifact.manifest.files["model.pte"].model_dump()})
        return_code = execute(need_runner(), "generate", other.folder, "--tokens", "1", "--load-state", tmp_path / "x")
        assert return_code.code == 2
        return
    line = ["generate", other.folder, "--tokens", "1", "--load-state", tmp_path / "x"]
    assert "another artifact" in execute(need_runner(), *line).refused()


def replay(artifact: Artifact, golden: dict[str, Any], path: Path) -> tuple[int, dict[str, Any]]:
    path.write_text(json.dumps(golden))
    done = execute(need_runner(), "golden", artifact.folder, path)
    return done.code, json.loads(done.out)


def test_golden_cases_of_a_bundle_replay(artifact, golden, tmp_path):
    code, report = replay(artifact, golden, tmp_path / "golden.json")
    assert (code, report["parity"]["passed"]) == (0, True)
    assert report["parity"]["limit"] == golden["max_error"]
    assert [case["steps"] for case in report["parity"]["cases"]] == [len(case["steps"]) for case in golden["cases"]]
    assert all(0 <= case["error"] < golden["max_error"] for case in report["parity"]["cases"])


@pytest.mark.parametrize("fault", ["logit", "token", "prompt"])
def test_a_wrong_golden_case_is_exit_code_1(artifact, golden, tmp_path, fault):
    wrong = json.loads(json.dumps(golden))
    case = wrong["cases"][1]
    if fault == "logit":
        case["steps"][-1]["logits"][3] += 0.2 * case["steps"][-1]["scale"]
    elif fault == "token":
        case["steps"][0]["top"].reverse()
    else:
        case["prompt"] = wrong["cases"][0]["prompt"]  # another question
    code, report = replay(artifact, wrong, tmp_path / "golden.json")
    assert (code, report["parity"]["passed"]) == (1, False)
    assert [case["passed"] for case in report["parity"]["cases"]] == [True, False, True]
