"""The resident form through ExecuTorch's own runners, with the real tokenizer, as an app would run it.

They return only text, so this is a proof of generation: the reply to a prompt is eager's greedy reply, and a second
conversation after `reset()` gets the very reply of the first. With images it is MultimodalRunner, which encodes each
piece of text between images by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.chat.generation import generate
from lfm2_export.chat.sampling import greedy
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import CheckpointError, MissingDependencyError
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.vision.encoder import vision_skeleton
from lfm2_export.model.vision.images import pixels
from lfm2_export.parity.images import Seen
from lfm2_export.parity.report import Judged, RuntimeReport
from lfm2_export.progress import Progress
from lfm2_export.runtimes import _stock_runners, executorch
from lfm2_export.runtimes.eager import EagerSession

_NEW_TOKENS = 16
_MESSAGES = ("Hello", "What color is the sky?")

Prompt = Sequence[str | Seen]


def runs(manifest: Manifest) -> bool:
    """Tell whether a stock runner is meant for such an artifact."""
    return manifest.target == "xnnpack" and manifest.form == "resident"


def prove(
    artifact: Artifact,
    tokenizer: ChatTokenizer | None,
    decoder: Decoder,
    progress: Progress,
    vision: VisionConfig | None = None,
    seen: Sequence[Seen] = (),
) -> RuntimeReport:
    """Hold two conversations, and the first one again; `decoder` is the same quantized model in eager.

    Where the artifact takes images, each shows one of those `seen` by the image part that `vision` describes.
    """
    name = _stock_runners.MULTIMODAL if artifact.manifest.takes_images else _stock_runners.TEXT
    report = RuntimeReport(runtime=name)
    if tokenizer is None or not tokenizer.has_template:
        report.reason = "the checkpoint has no tokenizer or chat template, and this runner takes only text"
        return report
    try:
        report.version = executorch.RUNTIME.version()
        prompts = [_prompt(tokenizer, text, vision, image) for text, image in zip(_MESSAGES, _shown(seen), strict=True)]
    except (MissingDependencyError, CheckpointError) as error:
        report.reason = str(error)
        return report
    progress(f"{name}: two conversations")
    start = time.perf_counter()
    replies = _replies(artifact, [*prompts, prompts[0]], vision)
    report.seconds = time.perf_counter() - start
    encoder = None if vision is None else vision_skeleton(vision)  # asked nothing: images were seen already
    session = EagerSession(decoder, artifact.manifest.window, encoder)
    expected = [_eager_reply(session, tokenizer, prompt, vision) for prompt in prompts]
    same = [_agree(ours, theirs) for ours, theirs in zip(replies, expected, strict=False)]
    judged = Judged(name)
    judged.at_least("generation: reply = eager's", sum(same) / len(same), 1.0)
    judged.at_least("law: reset", float(replies[2] == replies[0]), 1.0)
    report.gates, report.status = judged.results, judged.status
    return report


def _shown(seen: Sequence[Seen]) -> list[Seen | None]:
    """A square image and another, whose sides differ; none for a text model."""
    return [seen[3], seen[4]] if seen else [None, None]


def _prompt(tokenizer: ChatTokenizer, text: str, vision: VisionConfig | None, image: Seen | None) -> Prompt:
    if vision is None or image is None:
        return [tokenizer.render([{"role": "user", "content": text}])]
    shown = [{"type": "image"}, {"type": "text", "text": text}]
    rendered = tokenizer.render([{"role": "user", "content": shown}])
    place = tokenizer.decode([vision.image_token_id], skip_special_tokens=False)
    before, found, after = rendered.partition(place) if place else ("", "", "")
    if not found:
        raise CheckpointError("the chat template has no place for an image")
    return [before, image, after]


def _replies(artifact: Artifact, prompts: Sequence[Prompt], vision: VisionConfig | None) -> list[str]:
    pte = artifact.folder / artifact.manifest.methods[0].file
    tokens = artifact.folder / "tokenizer.json"
    if vision is None:
        return _stock_runners.generate(pte, tokens, [str(text) for (text,) in prompts], _NEW_TOKENS)
    shown = [
        [part if isinstance(part, str) else pixels(vision, part.image).numpy() for part in prompt] for prompt in prompts
    ]
    return _stock_runners.generate_with_images(pte, tokens, shown, _NEW_TOKENS)


def _eager_reply(session: EagerSession, tokenizer: ChatTokenizer, prompt: Prompt, vision: VisionConfig | None) -> str:
    """Greedy among the tokens that the tokenizer has: the runners sample no others, whatever the `.pte` says."""
    tokens: list[int] = []
    for part in prompt:
        if isinstance(part, str):
            tokens += tokenizer.encode(part)
        elif vision is not None:
            tokens += [vision.image_token_id] * len(part.stored)
    embeddings = [part.stored for part in prompt if not isinstance(part, str)]

    def sampler(logits: np.ndarray, seen: Sequence[int]) -> int:
        return greedy(logits[: tokenizer.size], seen)

    session.reset()
    shown = np.concatenate(embeddings) if embeddings else None
    ids = generate(session, tokens, tokenizer.eos_ids, _NEW_TOKENS, sampler, images=shown)
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def _agree(ours: str, theirs: str) -> bool:
    """Whether a reply is eager's, as far as the runner's binding hands it over."""
    cut = ours.endswith(_stock_runners.CUT)
    return theirs.startswith(ours.removesuffix(_stock_runners.CUT)) if cut else ours == theirs
