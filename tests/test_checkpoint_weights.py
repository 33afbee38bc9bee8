"""Reading weights: the same model whatever the dtype and however the files are split, and little memory for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import save_transformers
from hostile_checkpoints.shards import shard
from hostile_checkpoints.weights import with_tensors
from transformers import Lfm2ForCausalLM

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import CheckpointError
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.state import empty_state


def logits(checkpoint: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    decoder = load_decoder(checkpoint)
    position = torch.zeros(len(tokens), dtype=torch.int64)
    with torch.inference_mode():
        return decoder(tokens, position, None, empty_state(checkpoint.config, 32, len(tokens)), all_logits=True)[0]


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gives_transformers_logits(tmp_path: Path, dtype: torch.dtype, shard_size: str) -> None:
    save_transformers(tmp_path, dtype, shard_size)
    model = Lfm2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(tokens).logits
    checkpoint = open_checkpoint(str(tmp_path))
    assert (len(checkpoint.weights.files) > 1) == (shard_size == "60KB")
    assert (logits(checkpoint, tokens) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "changes", [{"tie_word_embeddings": False}, {"conv_bias": True}, {"conv_L_cache": 5}, {"head_dim": 32}], ids=str
)
def test_gives_transformers_logits_for_every_variant(tmp_path: Path, changes: dict[str, object]) -> None:
    model = save_transformers(tmp_path, **changes)
    tokens = torch.randint(0, 320, (1, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(tokens).logits
    assert (logits(open_checkpoint(str(tmp_path)), tokens) - expected).abs().max() <= 1e-4


def test_a_loaded_decoder_is_fp32_without_gradients_and_its_head_tied(tiny_checkpoint: Path) -> None:
    decoder = load_decoder(open_checkpoint(str(tiny_checkpoint)))
    assert not decoder.training
    assert {(p.dtype, p.device.type, p.requires_grad) for p in decoder.parameters()} == {(torch.float32, "cpu", False)}
    assert decoder.lm_head.weight is decoder.embed_tokens.weight


def test_a_loaded_decoder_outlives_its_files(tiny_checkpoint: Path) -> None:
    decoder = load_decoder(open_checkpoint(str(tiny_checkpoint)))
    before = decoder.embed_tokens.weight.clone()
    weights = tiny_checkpoint / "model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    assert torch.equal(decoder.embed_tokens.weight, before)


def test_tensors_come_in_their_stored_dtype(tmp_path: Path) -> None:
    save_transformers(tmp_path, torch.float16)
    assert {tensor.dtype for _, tensor in open_checkpoint(str(tmp_path)).tensors()} == {torch.float16}


def test_the_digest_does_not_depend_on_the_split(tiny_checkpoint: Path, tmp_path: Path) -> None:
    single = open_checkpoint(str(tiny_checkpoint)).digest()
    shutil.copytree(tiny_checkpoint, tmp_path / "sharded")
    shard(tmp_path / "sharded")
    sharded = open_checkpoint(str(tmp_path / "sharded"))
    assert len(sharded.weights.files) == 2
    assert sharded.digest() == single == open_checkpoint(str(tiny_checkpoint)).digest()


def test_the_digest_sees_a_single_bit_and_a_dtype(tiny_checkpoint: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.conv.conv.weight"].view(torch.int16)[3, 0, 1] ^= 1

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embedding_norm.weight"] = tensors["model.embedding_norm.weight"].float()

    digests = {open_checkpoint(str(tiny_checkpoint)).digest()}
    for change in (flip, widen):
        with_tensors(change, "")(tiny_checkpoint)
        digests.add(open_checkpoint(str(tiny_checkpoint)).digest())
    assert len(digests) == 3


def test_a_tied_checkpoint_may_carry_an_identical_head(tiny_checkpoint: Path) -> None:
    digest = open_checkpoint(str(tiny_checkpoint)).digest()
    with_tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}), "")(tiny_checkpoint)
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    assert "lm_head.weight" in checkpoint.weights.home
    assert "lm_head.weight" not in dict(checkpoint.tensors())
    assert checkpoint.digest() == digest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory as Linux counts it")
def test_memory_is_one_tensor_to_write_and_one_copy_to_load(tmp_path: Path) -> None:
    code = f"""
import json, resource
from dataclasses import replace
from pathlib import Path
from lfm2_export.model.random_init import SIZES, init_checkpoint
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.load import load_decoder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

config = replace(SIZES["350m"], layer_types=SIZES["350m"].layer_types[:4], vocab_size=8192)
start = peak()
init_checkpoint(config, Path({str(tmp_path / "model")!r}))
written = peak()
checkpoint = open_checkpoint({str(tmp_path / "model")!r})
checkpoint.digest()
read = peak()
decoder = load_decoder(checkpoint)
print(json.dumps([written - start, read - start, peak() - start, sum(4 * p.numel() for p in decoder.parameters())]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    written, read, loaded, model = json.loads(done.stdout)
    assert model > 300e6  # fp32; half of it on disk
    assert written < 100e6  # the largest tensor has 17 MB
    assert read < 100e6
    assert loaded < model + 120e6


def test_refusals_leave_no_mapping_behind(tiny_checkpoint: Path) -> None:
    with_tensors(lambda t: t["model.embed_tokens.weight"].fill_(float("nan")), "")(tiny_checkpoint)
    with pytest.raises(CheckpointError, match="holds NaN"):
        load_decoder(open_checkpoint(str(tiny_checkpoint)))
    os.truncate(tiny_checkpoint / "model.safetensors", 0)  # a mapping still in use would end the process


_FEW_FILES = """
import os, resource, sys
from lfm2_export.errors import CheckpointError
from lfm2_export.model.load import open_checkpoint, load_decoder
checkpoint = open_checkpoint("nano")
opened = len(os.listdir("/proc/self/fd")) - 1
for spare in range(int(sys.argv[1])):
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + spare, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        load_decoder(checkpoint)
    except CheckpointError as error:
        print("refused", error)
"""


def test_a_file_that_cannot_be_mapped_is_a_checkpoint_error_whichever_library_is_refused() -> None:
    """safetensors opens the file, and PyTorch once more, which has no class of error for it."""
    words = [sys.executable, "-c", _FEW_FILES, "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^refused .*Too many open files", done.stdout, re.MULTILINE)) == 2
