"""The page of a web bundle, in Chromium: it answers as eager does, proves itself, and sees what is wrong."""

from __future__ import annotations

import json
import re
import shutil

import drafted_text
import javascript
import numpy as np
import pytest
from artifacts import WINDOW
from web_chats import RECIPES, TURNS, answers

from lfm2_export import runtimes
from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.drafts import Lookup
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.onnxruntime import OnnxRuntimeSession


@pytest.mark.parametrize(("recipe", "source"), [*((recipe, "nano") for recipe in RECIPES), ("onnx-fp32", "nano-lfm3")])
def test_the_page_answers_as_eager_does_and_proves_itself(recipe, source, demo):
    seen = javascript.run("demo.mjs", {"folder": str(demo(recipe, source)), "turns": TURNS, "scheme": "dark"})
    assert (seen["problems"], seen["complaints"]) == ([], [])
    checkpoint = open_checkpoint(source)
    tokenizer = ChatTokenizer.load(checkpoint.folder, checkpoint.config)
    conversation = Conversation(EagerSession(load_decoder(checkpoint), WINDOW), tokenizer)
    expected = ["".join(conversation.reply(turn, 256)) for turn in TURNS]
    clear = len(TURNS) if recipe == "onnx-fp32" else 2  # nano was never taught the last one
    assert seen["replies"][:clear] == expected[:clear]
    assert seen["said"] == [[turn, 0] for turn in TURNS]  # as text, with no element inside
    assert "tok/s" in seen["speed"]
    assert seen["parity"]["verdict"] == "Parity: pass"
    assert [row[1] for row in seen["parity"]["rows"]] == ["same tokens"] * 3
    if recipe == "onnx-fp32":
        assert all(float(row[3]) < 1e-5 for row in seen["parity"]["rows"])


def test_the_page_drafts_as_python_does():
    text = drafted_text.text()
    drafts = drafted_text.expected(text, OnnxRuntimeSession.draft_cost)
    assert javascript.run("drafts.mjs", {"text": text, "most": drafted_text.MOST}) == drafts
    assert {len(draft) for draft in drafts} >= {0, 2, 7}


@pytest.mark.parametrize("source", ["nano", "nano-lfm3"])
def test_the_page_says_the_same_with_drafts(source, demo, make_artifact):
    """Nano's answers, said once more: the last line counts what Python's lookup counts."""
    turns = ["My name is Anna.", *["What is my name?"] * 3]
    artifact = make_artifact("onnx-fp32", "explicit", source=source)
    checkpoint = open_checkpoint(source)
    tokenizer = ChatTokenizer.load(checkpoint.folder, checkpoint.config)
    session = runtimes.find("onnxruntime").open_session(artifact.folder, artifact.manifest)
    plain, conversation = Conversation(session, tokenizer), Conversation(session, tokenizer, source=Lookup())
    expected = ["".join(plain.reply(turn, 256)) for turn in turns]
    assert ["".join(conversation.reply(turn, 256)) for turn in turns] == expected
    job = {"folder": str(demo("onnx-fp32", source)), "turns": turns, "scheme": "light", "drafts": True}
    seen = javascript.run("demo.mjs", job)
    assert (seen["problems"], seen["complaints"]) == ([], [])
    assert seen["replies"] == expected
    speed = conversation.speed
    assert speed.accepted_tokens > 0
    assert f"(accepted {speed.accepted_tokens} of {speed.drafted_tokens} drafted)" in seen["speed"]
    assert seen["parity"]["verdict"] == "Parity: pass"


@pytest.mark.slow
def test_the_page_proves_itself_on_webgpu_with_prompts_of_any_length(demo, make_artifact, long_prompts):
    job = {"folder": str(demo("onnx-fp32")), "turns": TURNS[:1], "scheme": "dark", "device": "webgpu"}
    seen = javascript.run("demo.mjs", job | {"prompts": long_prompts})
    assert (seen["problems"], seen["complaints"]) == ([], [])
    assert seen["replies"] == ["The sky is blue."]
    assert re.search(r"WebGPU on .*\(software\), prompts in chunks of 31: whole ones are wrong by 0\.", seen["facts"])
    assert seen["parity"]["verdict"] == "Parity: pass"
    artifact = make_artifact("onnx-fp32", "explicit")
    session = runtimes.find("onnxruntime").open_session(artifact.folder, artifact.manifest)
    for logits, expected in zip(seen["logits"], answers(session, long_prompts), strict=True):
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_page_proves_itself_on_webgpu_with_int4(demo):
    seen = javascript.run(
        "demo.mjs", {"folder": str(demo("onnx-int4")), "turns": [], "scheme": "dark", "device": "webgpu"}
    )
    assert (seen["problems"], seen["complaints"]) == ([], [])
    assert re.search(r"WebGPU on .*\(software\), prompts in chunks of 31", seen["facts"])
    assert seen["parity"]["verdict"] == "Parity: pass"
    assert [row[1:3] for row in seen["parity"]["rows"]] == [["same tokens", f"{n} of {n}"] for n in (6, 9, 6)]


def test_the_page_computes_in_fp16_where_it_can_and_says_where_not(demo):
    """SwiftShader has no fp16: asked for, it is refused; left to itself the page takes WebAssembly, which casts."""
    job = {"folder": str(demo("onnx-q4f16")), "turns": TURNS[:1], "scheme": "dark"}
    refused = javascript.run("demo.mjs", job | {"device": "webgpu"})
    assert refused["parity"] is None
    why = "not on WebGPU: google swiftshader does not compute in fp16 (shader-f16), which onnx-q4f16 needs. "
    assert refused["problems"] == [why + "Without ?device=webgpu this page computes on WebAssembly."]
    seen = javascript.run("demo.mjs", job)
    assert (seen["problems"], seen["complaints"]) == ([], [])
    assert (seen["replies"], seen["parity"]["verdict"]) == (["The sky is blue."], "Parity: pass")
    assert [row[1] for row in seen["parity"]["rows"]] == ["same tokens"] * 3


def test_the_second_time_the_page_needs_no_server(demo):
    job = {"folder": str(demo("onnx-fp32")), "turns": TURNS[:1], "scheme": "light", "offline": True, "pause": 600}
    seen = javascript.run("demo.mjs", job)
    assert (seen["problems"], seen["complaints"]) == ([], [])
    assert (seen["replies"], seen["parity"]["verdict"]) == (["The sky is blue."], "Parity: pass")
    assert "WebAssembly, 1 thread (not on WebGPU: it finds no GPU)" in seen["facts"]
    for what in ("the model", "onnxruntime-web"):  # the first time its bar followed the bytes
        loading = [step for step in seen["loading"] if step[0].startswith(f"Loading {what}: ")]
        said, bar, when = zip(*loading, strict=True)
        megabytes = re.findall(r"[\d.]+ MB", said[-1])
        assert megabytes[0] == megabytes[1]
        assert (bar[-1], sorted(bar)) == (1, list(bar))
        halfway = sum(at <= 0.5 for at in bar)
        assert 0 < halfway < len(bar) - 1
        if what == "the model":  # as the server sent them; the other file may have come while this one was read
            assert when[halfway] - when[0] > 300


def test_a_reply_can_be_stopped_and_the_conversation_goes_on(demo):
    job = {"turns": ["Say one word.", "What color is the sky?"], "scheme": "light", "stopAfter": 3}
    seen = javascript.run("demo.mjs", {"folder": str(demo("onnx-fp32")), **job})
    assert all(len(reply) >= 3 for reply in seen["replies"])
    assert seen["parity"]["verdict"] == "Parity: pass"
    assert (seen["problems"], seen["complaints"]) == ([], [])


def test_the_page_sees_a_wrong_number_and_a_damaged_model(demo, tmp_path):
    bundle = demo("onnx-fp32")
    wrong = tmp_path / "wrong"
    shutil.copytree(bundle, wrong)
    golden = json.loads((wrong / "golden.json").read_bytes())
    golden["cases"][1]["steps"][2]["logits"][0] += 2e-3 * golden["cases"][1]["steps"][2]["scale"]
    (wrong / "golden.json").write_text(json.dumps(golden))
    seen = javascript.run("demo.mjs", {"folder": str(wrong), "turns": [], "scheme": "light"})
    assert seen["parity"]["verdict"] == "Parity: FAIL"
    assert [row[4] for row in seen["parity"]["rows"]] == ["pass", "FAIL", "pass"]

    damaged = wrong / "model" / "onnx" / "model.onnx"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    seen = javascript.run("demo.mjs", {"folder": str(wrong), "turns": [], "scheme": "light"})
    assert len(seen["problems"]) == 1
    assert "SHA-256" in seen["problems"][0]
    assert seen["parity"] is None
