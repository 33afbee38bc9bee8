"""One ONNX folder, four runtimes: onnxruntime, its genai library, transformers.js under Node and in Chromium."""

from __future__ import annotations

import javascript
import numpy as np
import onnx
import pytest
from artifacts import WINDOW
from web_chats import CHATS, NEW_TOKENS, RECIPES, TURNS, answers, greedy_reply

from lfm2_export import runtimes
from lfm2_export.bundle.pack import bundle as pack
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.targets import onnx_graph


@pytest.mark.parametrize("runtime", ["onnxruntime", "genai"])
def test_python_runtimes_give_eagers_tokens(runtime, make_artifact, tokenizer, eager_replies):
    artifact = make_artifact("onnx-fp32", "explicit")
    session = runtimes.find(runtime).open_session(artifact.folder, artifact.manifest)
    assert [greedy_reply(session, tokenizer, messages) for messages in CHATS] == eager_replies


@pytest.mark.parametrize("script", ["transformers_node.mjs", "transformers_browser.mjs"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_transformers_js_gives_eagers_tokens(script, recipe, make_artifact, eager_replies):
    artifact = make_artifact(recipe, "explicit")
    found = javascript.run(script, {"folder": str(artifact.folder), "chats": CHATS, "newTokens": NEW_TOKENS})
    assert "error" not in found
    assert not [line for line in found.get("complaints", []) if "num_logits_to_keep" not in line]
    assert [chat["prompt"] for chat in found["chats"]] == [chat["prompt"] for chat in eager_replies]
    replies = [chat["reply"] for chat in found["chats"]]
    if recipe == "onnx-fp32":
        assert replies == [chat["reply"] for chat in eager_replies]
    else:  # rounded activations differ between processors: the questions nano was taught, where choices are clear
        assert replies[0] == eager_replies[0]["reply"]
        assert replies[2] == eager_replies[2]["reply"]


@pytest.mark.parametrize("script", ["transformers_node.mjs", "transformers_browser.mjs"])
def test_transformers_js_gives_eagers_tokens_of_lfm3(script, make_artifact):
    """What slides keeps its size there; in the browser a prompt far past it also goes on from a cache, call by call."""
    lfm3 = open_checkpoint("nano-lfm3")
    artifact = make_artifact("onnx-fp32", "explicit", source="nano-lfm3")
    chats, prompt = CHATS[:3], [10 + 7 * at % 900 for at in range(100)]
    job = {"folder": str(artifact.folder), "chats": chats, "prompts": [prompt], "newTokens": NEW_TOKENS}
    found = javascript.run(script, job)
    assert "error" not in found
    tokenizer = ChatTokenizer.load(lfm3.folder, lfm3.config)
    eager = EagerSession(load_decoder(lfm3), WINDOW)
    assert found["chats"] == [greedy_reply(eager, tokenizer, messages) for messages in chats]
    if script == "transformers_browser.mjs":
        (long,) = found["prompts"]
        eager.reset()
        expected = eager.prefill(prompt)
        assert np.abs(np.array(long["logits"]) - expected).max() < 1e-4 * np.abs(expected).max()
        for token in long["reply"]:
            assert token == int(np.argmax(expected))
            expected = eager.decode(token)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["onnx-fp32", "onnx-int4"])
def test_webgpu_gives_eagers_tokens(recipe, make_artifact, eager_replies):
    artifact = make_artifact(recipe, "explicit")
    job = {"folder": str(artifact.folder), "chats": CHATS[:1], "newTokens": NEW_TOKENS, "device": "webgpu"}
    found = javascript.run("transformers_browser.mjs", job)
    assert "error" not in found
    assert found["chats"] == eager_replies[:1]
    products = sum(node.op_type.startswith("MatMul") for node in onnx.load(model_file(artifact)).graph.node)
    assert found["dispatches"] > products * len(eager_replies[0]["reply"])  # not on the CPU behind one's back


@pytest.mark.slow
def test_transformers_js_on_webgpu_needs_short_calls(make_artifact, long_prompts):
    """When whole prompts are right, upstream is mended: say so in docs/onnx.md and docs/webgpu-attention-bug.md."""
    artifact = make_artifact("onnx-fp32", "explicit")
    job = {"folder": str(artifact.folder), "prompts": long_prompts, "newTokens": 8, "device": "webgpu"}
    found = javascript.run("transformers_browser.mjs", job)
    assert "error" not in found
    session = runtimes.find("onnxruntime").open_session(artifact.folder, artifact.manifest)
    whole = [
        np.abs(np.array(each["logits"]) - expected).max()
        for each, expected in zip(found["prompts"], answers(session, long_prompts), strict=True)
    ]
    assert max(whole[:2]) < 1e-4
    assert min(whole[2:]) > 0.1
    for prompt, each in zip(long_prompts, found["prompts"], strict=True):
        session.reset()
        reply = [int(np.argmax(session.prefill(prompt)))]
        while len(reply) < len(each["reply"]):
            reply.append(int(np.argmax(session.decode(reply[-1]))))
        assert each["reply"] == reply


def model_file(artifact):
    return artifact.folder / artifact.manifest.methods[0].file


def test_external_data_in_chunks_is_found_everywhere(nano, tokenizer, eager_replies, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", 1000)
    monkeypatch.setattr(onnx_graph, "CHUNK_BYTES", 2_000_000)
    changes = [f"window={WINDOW}"]
    artifact, _ = export("nano", "onnx-fp32", tmp_path / "chunked", overrides=changes, verify=False)
    names = {"model.onnx", "model.onnx_data", "model.onnx_data_1", "model.onnx_data_2"}
    assert {path.name for path in (artifact.folder / "onnx").iterdir()} == names
    for runtime in ("onnxruntime", "genai"):
        session = runtimes.find(runtime).open_session(artifact.folder, artifact.manifest)
        assert greedy_reply(session, tokenizer, CHATS[2]) == eager_replies[2]
    job = {"folder": str(artifact.folder), "chats": CHATS[2:3], "newTokens": NEW_TOKENS}
    for script in ("transformers_node.mjs", "transformers_browser.mjs"):
        assert javascript.run(script, job)["chats"] == eager_replies[2:3]
    bundle = pack(artifact, "web", tmp_path / "web", node_modules=javascript.NODE_MODULES).path
    seen = javascript.run("demo.mjs", {"folder": str(bundle), "turns": TURNS[:1], "scheme": "light"})
    assert (seen["replies"], seen["parity"]["verdict"]) == (["The sky is blue."], "Parity: pass")


def test_what_cannot_run_is_skipped_with_its_reason_and_fails_in_ci(monkeypatch, tmp_path):
    monkeypatch.setattr(javascript, "NODE_MODULES", tmp_path)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"npm|Node"):
        javascript.need()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=r"npm|Node"):
        javascript.need()
