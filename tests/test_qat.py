"""A checkpoint fine-tuned with torchao's fake quantization: the artifact computes what training ended with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchao.quantization.qat import FakeQuantizedEmbedding, FakeQuantizedLinear, IntxFakeQuantizeConfig

from lfm2_export import recipes
from lfm2_export.checkpoint import nano
from lfm2_export.checkpoint.nano.tasks import questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.metrics import relative_error
from lfm2_export.graph.matrices import matrices
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.state import empty_state
from lfm2_export.pipeline import export
from lfm2_export.quantize.apply import load_quantized
from lfm2_export.runtimes import executorch
from lfm2_export.runtimes.eager import EagerSession

STEPS = 6  # enough to move weights across the grid; what must hold does not depend on their number
TOKENS = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
GROUPS = IntxFakeQuantizeConfig(torch.int4, group_size=32, scale_precision=torch.bfloat16)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained() -> Decoder:
    """Nano under int8 activations and int4 weights, a little further trained; its weights are the latent fp32 ones."""
    checkpoint = open_checkpoint("nano")
    tokenizer = ChatTokenizer.load(checkpoint.folder, checkpoint.config)
    assert tokenizer is not None
    decoder = load_decoder(checkpoint)
    for path, kind, _ in matrices(decoder.config):
        parent, _, name = path.rpartition(".")
        module = decoder.get_submodule(path)
        if kind == "embedding":
            faked: nn.Module = FakeQuantizedEmbedding.from_embedding(module, GROUPS)
        else:
            faked = FakeQuantizedLinear.from_linear(module, TOKENS, GROUPS)
        setattr(decoder.get_submodule(parent), name, faked)
    decoder.lm_head.weight = decoder.embed_tokens.weight
    optimizer = torch.optim.AdamW(decoder.requires_grad_(True).parameters(), lr=1e-3)
    for step in range(STEPS):
        (question,) = questions(step, 1)
        turns = [*question.messages, {"role": "assistant", "content": question.answer}]
        ids = torch.tensor([tokenizer.encode(tokenizer.render(turns, add_generation_prompt=False))])
        logits, _ = decoder(ids, torch.tensor([0]), None, empty_state(decoder.config, 1), all_logits=True)
        F.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(trained: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fine-tune as a checkpoint folder in Hugging Face layout."""
    made = Path(shutil.copytree(nano.PATH, tmp_path_factory.mktemp("qat") / "tuned", ignore=lambda *_: ["__pycache__"]))
    tensors = {}
    for name, tensor in trained.named_parameters():
        path = f"model.{name}"
        if ".conv.kernel" in path:
            tensors[path.replace("conv.kernel", "conv.conv.weight")] = tensor.T.unsqueeze(1).contiguous()
        elif ".conv.b_proj" in path:
            parts = [trained.get_parameter(name.replace("b_proj", f"{part}_proj")) for part in "bcx"]
            tensors[path.replace("b_proj", "in_proj")] = torch.cat(parts)
        elif ".c_proj" not in path and ".x_proj" not in path:
            tensors[path] = tensor.contiguous()
    save_file(tensors, made / "model.safetensors")
    return made


def asked(count: int) -> list[int]:
    tokenizer = ChatTokenizer.load(nano.PATH, open_checkpoint("nano").config)
    assert tokenizer is not None
    return tokenizer.encode(tokenizer.render(questions(9, 1)[0].messages))[:count]


def test_the_quantized_model_is_the_fake_quantized_one(trained: Decoder, folder: Path) -> None:
    rules, ids = recipes.load("xnnpack-int4").quantization, asked(40)
    expected = EagerSession(trained, 64).score(ids)
    checkpoint = open_checkpoint(str(folder))
    again, other = (
        relative_error(EagerSession(load_quantized(checkpoint, rules, "float32", method), 64).score(ids), expected)
        for method in ("qat", "nearest")
    )
    assert again < 1e-5
    assert other > 100 * again  # any other grid is a second loss


@pytest.mark.slow
def test_the_artifact_computes_it_too(trained: Decoder, folder: Path, tmp_path: Path) -> None:
    changes = ["weights=qat", "cache=float32", "window=64"]
    artifact, _ = export(str(folder), "xnnpack-int4", tmp_path / "made", overrides=changes, verify=False)
    session, eager = executorch.RUNTIME.open_session(artifact.folder, artifact.manifest), EagerSession(trained, 64)
    errors = []
    for token in asked(40):  # each step from the trained model's own state: a tipped rounding stays in its step
        session.restore(eager.state())
        errors.append(relative_error(session.decode(token), eager.decode(token)))
    assert np.median(errors) < 1e-4
    assert max(errors) < recipes.load("xnnpack-int4").gates.lowering.max_error
