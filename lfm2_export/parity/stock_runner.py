"""The resident form through ExecuTorch's own TextLLMRunner, with the real tokenizer, as an app would run it.

That runner returns only text, so this is a proof of generation: the reply to a prompt is eager's greedy reply, and a
second conversation after `reset()` gets the very reply of the first.
"""

from __future__ import annotations

import time

from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.chat.generation import generate
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import MissingDependencyError
from lfm2_export.model.decoder import Decoder
from lfm2_export.parity.report import Judged, RuntimeReport
from lfm2_export.progress import Progress
from lfm2_export.runtimes import _text_llm_runner, executorch
from lfm2_export.runtimes.eager import EagerSession

NAME = "TextLLMRunner"
_NEW_TOKENS = 16
_MESSAGES = ("Hello", "What color is the sky?")


def runs(manifest: Manifest) -> bool:
    """Tell whether the stock runner is meant for such an artifact."""
    return manifest.target == "xnnpack" and manifest.form == "resident"


def prove(artifact: Artifact, tokenizer: ChatTokenizer | None, decoder: Decoder, progress: Progress) -> RuntimeReport:
    """Hold two conversations, and the first one again; `decoder` is the same quantized model in eager."""
    report = RuntimeReport(runtime=NAME)
    if tokenizer is None or not tokenizer.has_template:
        report.reason = "the checkpoint has no tokenizer or chat template, and this runner takes only text"
        return report
    try:
        report.version = executorch.RUNTIME.version()
    except MissingDependencyError as error:
        report.reason = str(error)
        return report
    progress(f"{NAME}: two conversations")
    prompts = [tokenizer.render([{"role": "user", "content": text}]) for text in _MESSAGES]
    start = time.perf_counter()
    pte = artifact.folder / artifact.manifest.methods[0].file
    tokens = artifact.folder / "tokenizer.json"
    replies = _text_llm_runner.generate(pte, tokens, [*prompts, prompts[0]], _NEW_TOKENS)
    report.seconds = time.perf_counter() - start
    expected = [_eager_reply(decoder, artifact.manifest.window, tokenizer, prompt) for prompt in prompts]
    same = [ours == theirs for ours, theirs in zip(replies, expected, strict=False)]
    judged = Judged(NAME)
    judged.at_least("generation: reply = eager's", sum(same) / len(same), 1.0)
    judged.at_least("law: reset", float(replies[2] == replies[0]), 1.0)
    report.gates, report.status = judged.results, judged.status
    return report


def _eager_reply(decoder: Decoder, window: int, tokenizer: ChatTokenizer, prompt: str) -> str:
    session = EagerSession(decoder, window)
    ids = generate(session, tokenizer.encode(prompt), tokenizer.eos_ids, _NEW_TOKENS)
    return tokenizer.decode(list(ids), skip_special_tokens=False)
