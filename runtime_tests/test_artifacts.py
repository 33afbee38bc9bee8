"""The upper rungs of the ladder, for every artifact form and precision: proof, edges, text through real runtimes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artifacts import EFFORT, ON_EMULATOR, WINDOW, open_session

from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.saved_state import save_state
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError, WindowExceededError
from lfm2_export.parity.prove import prove
from lfm2_export.parity.reference import reference
from lfm2_export.runtimes import _stock_runners


@pytest.mark.slow
def test_every_artifact_is_proven_by_its_recipe_gates(artifact, nano):
    report = prove(artifact, nano, effort=ON_EMULATOR if artifact.manifest.npu else EFFORT)
    failed = [gate for gate in report.gates if gate.status == "fail"]
    assert not failed
    assert report.passed
    statuses = {runtime.runtime: runtime.status for runtime in report.runtimes}
    if statuses.get("onnxruntime-cuda") == "skipped":  # where there is a GPU it must pass like the others
        assert "CUDA" in str(next(r.reason for r in report.runtimes if r.runtime == "onnxruntime-cuda"))
        del statuses["onnxruntime-cuda"]
    assert set(statuses.values()) == {"pass"}
    # 16 bits round differently in every step: a narrower cache, the NPU, products on processors with fp16 arithmetic
    halves = artifact.manifest.recipe["name"].endswith("-fp16")
    exact = artifact.manifest.recipe["cache"] == "float32" and not artifact.manifest.npu and not halves
    if exact and artifact.manifest.form == "explicit":  # int8 flips are rare on nano: the median step is free of them
        assert report.runtimes[0].lowering.median_step < 1e-5


def test_a_prompt_longer_than_one_call_equals_eager(artifact, quantized_nano):
    eager, session = reference(artifact, quantized_nano(artifact)), open_session(artifact)
    ids = [1 + 7 * i % 900 for i in range(WINDOW - 4)]
    scale = np.abs(expected := eager.prefill(ids)).max()
    limit = artifact.manifest.recipe["gates"]["lowering"]["max_error"]
    assert np.abs(session.prefill(ids) - expected).max() <= limit * scale
    assert np.abs(session.decode(5) - eager.decode(5)).max() <= limit * scale


@pytest.mark.parametrize(
    "ids", [[], [-1], [1024], [0] * (WINDOW + 1)], ids=["none", "negative", "too large", "too many"]
)
def test_bad_calls_are_refused_and_change_nothing(artifact, ids):
    session = open_session(artifact)
    before = session.prefill([3, 4, 5])
    with pytest.raises(WindowExceededError if len(ids) > WINDOW else UsageError):
        session.prefill(ids)
    assert session.position == 3
    session.reset()
    np.testing.assert_array_equal(session.prefill([3, 4, 5]), before)


def test_a_state_moves_between_sessions_of_the_same_artifact(artifact):
    first, second = open_session(artifact), open_session(artifact)
    first.prefill([9, 8, 7, 6])
    if not first.has_state:
        with pytest.raises(UsageError, match="explicit"):
            first.state()
        return
    second.prefill([1, 2])
    second.restore(first.state())
    np.testing.assert_array_equal(second.decode(5), first.decode(5))
    with pytest.raises(UsageError, match="does not fit"):
        second.restore(type(first.state())(WINDOW + 1, first.state().tensors))


GO_ON = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from artifacts import open_session
from lfm2_export import load_state, open_artifact
from lfm2_export.chat.sampling import greedy
artifact = open_artifact(Path(sys.argv[2]))
session = open_session(artifact)
session.restore(load_state(Path(sys.argv[3]), artifact).snapshot)
logits = [session.decode(5)]
for _ in range(12):
    logits.append(session.decode(greedy(logits[-1], [])))
np.save(sys.argv[4], np.stack(logits))
"""


@pytest.mark.parametrize(
    ("recipe", "source"),
    [
        *((recipe, "nano") for recipe in ("xnnpack-fp32", "xnnpack-int8", "onnx-fp32", "onnx-int8")),
        *((recipe, "nano-lfm3") for recipe in ("xnnpack-int8", "onnx-fp32")),
    ],
)
def test_a_saved_state_goes_on_in_another_process_to_the_bit(recipe, source, make_artifact, tmp_path):
    artifact, ids = make_artifact(recipe, "explicit", source=source), [1 + 7 * i % 900 for i in range(100)]
    session = open_session(artifact)
    session.prefill(ids)
    save_state(tmp_path / "x.state", session.state(), artifact, ids)
    arguments = [Path(__file__).parent, artifact.folder, tmp_path / "x.state", tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-c", GO_ON, *map(str, arguments)], check=True, timeout=300)
    expected = [session.decode(5)]
    for _ in range(12):
        expected.append(session.decode(int(np.argmax(expected[-1]))))
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), np.stack(expected))


def test_a_chat_of_two_turns_goes_on_from_the_first(artifact, nano):
    tokenizer = ChatTokenizer.load(artifact.folder, nano.config)
    conversation = Conversation(open_session(artifact), tokenizer)
    assert "".join(conversation.reply("What color is the sky?", 24)) == "The sky is blue."
    seen = conversation.session.position
    assert "".join(conversation.reply("Thanks!", 24)) == "You are welcome!"
    assert conversation.session.position > seen
    assert conversation.speed.cached_tokens == seen
    conversation.reset()
    assert "".join(conversation.reply("What color is the sky?", 24)) == "The sky is blue."


def test_a_turn_is_taken_back_to_the_bit_or_the_form_says_why_not(artifact, nano):
    conversation = Conversation(open_session(artifact), ChatTokenizer.load(artifact.folder, nano.config))
    "".join(conversation.reply("What color is the sky?", 24))
    if artifact.manifest.form == "resident":
        with pytest.raises(UsageError, match="--form explicit"):
            conversation.rewind()
        return
    before = conversation.session.state()
    "".join(conversation.reply("Thanks!", 24))
    conversation.rewind()
    after = conversation.session.state()
    assert after.position == before.position
    for name, tensor in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], tensor)


@pytest.mark.parametrize("recipe", ["xnnpack-fp32", "xnnpack-int8", "xnnpack-int4"])
def test_the_stock_runner_cuts_long_prompts_and_forgets_on_reset(recipe, make_artifact, nano):
    artifact = make_artifact(recipe, "resident")
    tokenizer = ChatTokenizer.load(artifact.folder, nano.config)
    short, filler = "What color is the sky?", "Snow is white. Grass is green. " * 25
    prompts = [tokenizer.render([{"role": "user", "content": text}]) for text in (short, filler, short)]
    tokens = len(tokenizer.encode(prompts[1]))
    assert artifact.manifest.methods[0].max_tokens < tokens < WINDOW
    pte = artifact.folder / artifact.manifest.methods[0].file
    replies = _stock_runners.generate(pte, artifact.folder / "tokenizer.json", prompts, 12)
    assert replies[0] == replies[2] == "The sky is blue."


def test_a_manifest_names_what_fell_off_the_delegate(artifact):
    method = artifact.manifest.methods[0]
    if artifact.manifest.target == "qnn":
        reports = [each.delegation for each in artifact.manifest.methods]
        assert [(report.calls, report.fallback) for report in reports] == [(1, {}), (1, {})]
        return
    if artifact.manifest.target != "xnnpack":
        assert method.delegation is None
        return
    assert method.delegation.calls > 0
    assert method.delegation.delegated > 100
    assert not any("linear" in name or "bmm" in name or "conv" in name for name in method.delegation.fallback)
    assert json.loads(artifact.manifest.model_dump_json())["methods"][0]["delegation"]["fallback"]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "form"), [("xnnpack-int4", "resident"), ("onnx-int4", "explicit")])
def test_the_same_input_gives_the_same_bytes(recipe, form, make_artifact, tmp_path):
    from lfm2_export.pipeline import export

    first = make_artifact(recipe, form)
    changes = [f"form={form}", f"window={WINDOW}"]
    second, _ = export("nano", recipe, tmp_path / "again", overrides=changes, verify=False)
    assert second.manifest == first.manifest
