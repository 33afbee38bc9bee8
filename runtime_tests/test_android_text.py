"""Around the model, Android's library says what Python says: templates, tokens, the sampler's weights, drafts."""

from __future__ import annotations

import json
import random

import drafted_text
import numpy as np
import pytest
from android_cases import CHATS, TOOL, texts

from lfm2_export.chat.sampling import MinPSampler
from lfm2_export.checkpoint.template import ChatTemplate
from lfm2_export.runtimes.session import Session

pytestmark = pytest.mark.slow  # Kotlin is compiled first


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("tools", [None, [TOOL], [json.dumps(TOOL), TOOL, {}], [{"a": 1}, "plain text"]])
def test_template_is_the_checkpoints_to_the_byte(tools, generation, kotlin, tokenizer):
    for messages in CHATS:
        expected = tokenizer.render(messages, tools, generation)
        more = {"tools": tools} if tools else {}
        rendered = kotlin("render", bos="<|startoftext|>", messages=messages, generation=generation, **more)
        assert rendered == expected


def test_tools_are_written_as_jinja_writes_them(kotlin):
    numbers = random.Random(5)
    values = [10 ** numbers.uniform(-320, 308) * numbers.choice([1, -1]) for _ in range(500)]
    values += [float(numbers.randrange(1 << 53)) for _ in range(100)] + [2.0**power for power in range(-1074, 1024, 7)]
    documents = [{"value": value, "text": chr(at)} for at, value in enumerate(values)] + [TOOL, [], {"": [[]]}]
    template = ChatTemplate("{{ value | default(0) | tojson }}", "test")
    assert kotlin("json", values=documents) == [template.render({"value": document}) for document in documents]


def test_tokenizer_is_the_checkpoints(nano, kotlin, tokenizer):
    # what later versions of Unicode added is a letter to one side only
    asked = texts(unknown=set(kotlin("unassigned")))
    path = str(nano.folder / "tokenizer.json")
    encoded = kotlin("encode", tokenizer=path, texts=asked)
    differing = [text for text, ids in zip(asked, encoded, strict=True) if ids != tokenizer.encode(text)]
    assert not differing
    for ids in encoded[:200]:
        assert "".join(kotlin("decode", tokenizer=path, ids=ids)) == tokenizer.decode(ids, False)


@pytest.mark.parametrize("settings", [(0.3, 0.15, 1.05), (1.0, 0.0, 1.0), (0.7, 0.5, 2.0)])
def test_sampler_weighs_tokens_as_python_does(settings, kotlin):
    names = ("temperature", "min_p", "repetition_penalty")
    sampler = MinPSampler(**dict(zip(names, settings, strict=True)))
    sampler._random = choice = _Recorder()
    for seed in range(5):
        logits = np.random.default_rng(seed).normal(0, 3, 200).astype(np.float32)
        seen = [1, 5, 5, int(logits.argmax())]
        sampler(logits, seen)
        job = dict(zip(names, settings, strict=True))
        found = kotlin("weights", logits=[float(value) for value in logits], seen=seen, **job)
        np.testing.assert_allclose(found, choice.weights, rtol=1e-12, atol=0)


class _Recorder:
    """Stands in for numpy's generator and keeps the probabilities it is given."""

    def choice(self, size, p):
        self.weights = p
        return 0


def test_drafts_are_pythons(kotlin):
    text = drafted_text.text()
    assert kotlin("drafts", text=text, most=drafted_text.MOST) == drafted_text.expected(text, Session.draft_cost)
