"""What every runtime of an ONNX folder is asked, and what a session answers to it."""

from __future__ import annotations

import numpy as np

CHATS = [
    [{"role": "user", "content": "What color is the sky?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": "Nice to meet you, Anna."},
        {"role": "user", "content": "What is my name?"},
    ],
    [{"role": "user", "content": "Ünïcödé 🙂 <b>&amp;</b>"}],
]
TURNS = ["What color is the sky?", "Thanks!", "<b>Hello</b> & <script>alert(1)</script>"]
NEW_TOKENS = 24
RECIPES = ["onnx-fp32", "onnx-int8", "onnx-int4"]
LENGTHS = (5, 31, 32, 40, 300)  # of prompts; from 32 on WebGPU's attention goes another way


def greedy_reply(session, tokenizer, messages):
    """Prompt and greedy reply as transformers.js gives them: the end token is part of the reply."""
    session.reset()
    prompt = tokenizer.encode(tokenizer.render(messages))
    reply = [int(np.argmax(session.prefill(prompt)))]
    while len(reply) < NEW_TOKENS and reply[-1] not in tokenizer.eos_ids:
        reply.append(int(np.argmax(session.decode(reply[-1]))))
    return {"prompt": prompt, "reply": reply}


def answers(session, prompts):
    """The logits after each prompt."""
    found = []
    for prompt in prompts:
        session.reset()
        found.append(session.prefill(prompt))
    return found
