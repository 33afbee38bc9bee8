"""An artifact as a model of lm-evaluation-harness: its figures are those of the logits themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command import code_of
from lm_eval.api.instance import Instance

from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.evaluate.harness import ArtifactLM
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.runtimes.eager import EagerSession

WINDOW = 64
CHOICES = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
REPLIES = """\
task: replies
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{reply}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def session() -> EagerSession:
    return EagerSession(load_decoder(open_checkpoint("nano")), WINDOW)


@pytest.fixture
def model(session: EagerSession, tokenizer: ChatTokenizer) -> ArtifactLM:
    return ArtifactLM(session, tokenizer)


def asked(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    return exact - np.log(np.exp(exact - exact.max()).sum()) - exact.max()


def test_a_continuation_has_the_sum_of_its_tokens_log_probabilities(model, session, tokenizer):
    context, continuation = "The sky", " is blue."
    (total, is_greedy), again = model.loglikelihood([asked("loglikelihood", context, continuation)] * 2, True)
    whole = tokenizer.encode(context + continuation, add_special_tokens=True)
    start = len(tokenizer.encode(context, add_special_tokens=True))
    session.reset()
    logits = [session.prefill(whole[:start]), *(session.decode(token) for token in whole[start:-1])]
    expected = sum(log_softmax(row)[token] for row, token in zip(logits, whole[start:], strict=True))
    assert total == pytest.approx(expected, abs=1e-5)
    assert is_greedy == all(row.argmax() == token for row, token in zip(logits, whole[start:], strict=True))
    assert again == (total, is_greedy)  # the second one went back to the context's state


def test_what_greedy_decoding_says_is_called_greedy(model, tokenizer):
    prompt = tokenizer.render([{"role": "user", "content": "What color is the sky?"}])
    (reply,) = model.generate_until([asked("generate_until", prompt, {"until": [], "max_gen_toks": 20})], True)
    assert "blue" in reply
    ((_, is_greedy),) = model.loglikelihood([asked("loglikelihood", prompt, reply)], True)
    ((_, other),) = model.loglikelihood([asked("loglikelihood", prompt, reply.replace("blue", "red"))], True)
    assert (is_greedy, other) == (True, False)


def test_a_reply_ends_where_a_stop_text_begins(model, tokenizer):
    prompt = tokenizer.render([{"role": "user", "content": "What color is the sky?"}])
    request = asked("generate_until", prompt, {"until": ["blue"], "max_gen_toks": 20})
    (reply,) = model.generate_until([request], True)
    assert reply
    assert "blue" not in reply


def test_a_text_longer_than_the_window_is_scored_in_pieces(model, session, tokenizer):
    """Every token once, each piece with as much context as the window leaves it: lm-eval's disjoint sequences."""
    text = "The sky is blue. " * 40
    ids, room = tokenizer.encode(text), WINDOW - 1
    assert len(ids) > 2 * WINDOW
    (rolling,) = model.loglikelihood_rolling([asked("loglikelihood_rolling", text)], True)
    expected, scored = 0.0, 0
    while scored < len(ids):
        piece = ids[scored : scored + room]
        before = ([model.prefix_token_id, *ids])[: scored + 1]  # the last one predicts the piece's first token
        context = before[-(1 + room - len(piece)) :]
        session.reset()
        logits = [session.prefill(context), *(session.decode(token) for token in piece[:-1])]
        expected += sum(log_softmax(row)[token] for row, token in zip(logits, piece, strict=True))
        scored += len(piece)
    assert rolling == pytest.approx(expected, abs=1e-3)
    short = "The sky is blue."
    (whole,) = model.loglikelihood_rolling([asked("loglikelihood_rolling", short)], True)
    ((direct, _),) = model.loglikelihood([asked("loglikelihood", "", short)], True)
    assert whole == pytest.approx(direct, abs=1e-5)


def test_sampling_and_a_continuation_beyond_the_window_are_refused(model):
    with pytest.raises(UsageError, match="sampling"):
        model.generate_until([asked("generate_until", "Hi", {"temperature": 0.7})], True)
    with pytest.raises(UsageError, match="window"):
        model.loglikelihood([asked("loglikelihood", "Hi", " blue" * 200)], True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("score") / "nano"
    return export("nano", "onnx-int8", output, overrides=["window=128"], verify=False)[0].folder


def tasks_in(folder: Path) -> Path:
    documents = [
        {
            "question": f"What color is the {thing}?",
            "choices": [f"The {thing} is {color}." for color in ("blue", "green")],
            "answer": answer,
            "reply": reply,
        }
        for thing, answer, reply in (("sky", 0, "The sky is blue."), ("grass", 1, "The grass is purple."))
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "colours.yaml").write_text(CHOICES.format(data=data))
    (folder / "replies.yaml").write_text(REPLIES.format(data=data))
    return folder


@pytest.mark.slow
def test_the_command_runs_ones_own_tasks_offline(artifact, tmp_path, capfd, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    options = ["--task", "colours", "--task", "replies", "--include", str(tasks_in(tmp_path)), "--chat"]
    assert code_of("score", str(artifact), *options, "--quiet", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found.keys() == {"colours", "replies"}
    assert found["replies"]["exact_match"] == 0.5  # nano knows the sky; nobody says what the test wants of grass
    assert found["colours"]["acc"] == 1  # the sky is blue, the grass is green


def test_an_unknown_task_is_one_line(artifact, tmp_path, capsys):
    assert code_of("score", str(artifact), "--task", "no_such_task", "--include", str(tmp_path), "--quiet") == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert "no_such_task" in shown[-1]


def test_without_lm_eval_the_message_says_what_to_install(artifact, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lfm2_export.evaluate.harness")
    assert code_of("score", str(artifact), "--task", "colours", "--quiet") == 2
    assert "pip install 'lfm2-export[score]'" in capsys.readouterr().err
