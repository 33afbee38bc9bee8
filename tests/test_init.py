"""`init` writes checkpoints of the true shapes, the same bytes for the same seed, whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import LFM3, MOE, SIX_LAYERS, tiny_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lfm2_export.checkpoint.config import read_config
from lfm2_export.errors import CheckpointError, UsageError
from lfm2_export.model import random_init
from lfm2_export.model.load import open_checkpoint, tensor_shapes
from lfm2_export.model.random_init import SIZES, init_checkpoint


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        *(("350m", 354_483_968), ("700m", 742_489_344), ("1.2b", 1_170_340_608), ("2.6b", 2_569_272_320)),
        *(("lfm2-8b-a1b", 8_339_929_856), ("lfm3-1.7b", 1_728_801_536)),
    ],
)
def test_sizes_have_the_released_number_of_parameters(size: str, parameters: int) -> None:
    shapes = tensor_shapes(SIZES[size])
    assert sum(math.prod(shape) for name, shape in shapes.items() if "expert_bias" not in name) == parameters


def test_the_largest_size_has_22_convolutions_and_8_attentions() -> None:
    assert (len(SIZES["2.6b"].conv_layers), len(SIZES["2.6b"].attention_layers)) == (22, 8)


def test_same_seed_same_bytes_other_seed_other_bytes(
    tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        init_checkpoint(tiny_config(), tmp_path / name, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    digests = {open_checkpoint(str(tmp_path / name)).digest() for name in "abc"}
    assert len(digests) == 2


def test_weights_are_distributed_as_transformers_initializes_them(tmp_path: Path) -> None:
    init_checkpoint(replace(tiny_config(), vocab_size=20_000, conv_bias=True), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"].float()
    assert embedding.std() == pytest.approx(0.02, rel=0.02)
    assert embedding.mean() == pytest.approx(0, abs=2e-4)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(bool((tensor == 1).all()) for name, tensor in tensors.items() if "norm" in name)
    assert all(bool((tensor == 0).all()) for name, tensor in tensors.items() if name.endswith(".bias"))
    w1, w3 = (tensors[f"model.layers.0.feed_forward.{name}.weight"] for name in ("w1", "w3"))
    assert not torch.equal(w1, w3)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_bias": True, "tie_word_embeddings": False, "conv_L_cache": 5},
        LFM3 | {"attention_bias": True},
        LFM3 | {"rope_factor": 1.0, "use_attention_gate": False, "use_sandwich_norm": False},
        LFM3 | {"layer_types": ("conv", "full_attention"), "sliding_window": None, "sliding_rope_theta": 0.0},
        MOE,
        MOE | {"use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 2.0},
    ],
)
def test_transformers_opens_what_init_wrote(changes: dict[str, Any], tmp_path: Path) -> None:
    config = replace(tiny_config(), **changes)
    init_checkpoint(config, tmp_path / "model")
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert read_config(tmp_path / "model" / "config.json") == config
    assert open_checkpoint(str(tmp_path / "model")).random_weights


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """100 MB of experts in matrices of 1 MB: less than a tenth of them is ever in memory."""
    script = (
        "import resource, sys; from dataclasses import replace; from pathlib import Path\n"
        "from checkpoints import MOE, tiny_config; from lfm2_export.model.random_init import init_checkpoint\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "def write(name, **more): init_checkpoint(replace(tiny_config(), **(MOE | more)), Path(sys.argv[1]) / name)\n"
        "wide = {'hidden_size': 512, 'head_dim': 256, 'moe_intermediate_size': 1024}\n"
        "write('small', **wide, num_experts=2); before = peak()\n"
        "write('large', **wide, num_experts=16); print((peak() - before) * 1024)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 95e6
    assert int(said.stdout) < size / 10


def test_a_config_in_the_old_spelling_becomes_one_in_the_new(tmp_path: Path) -> None:
    old = {key: value for key, value in SIX_LAYERS.items() if key not in ("layer_types", "block_auto_adjust_ff_dim")}
    old |= {"model_type": "lfm2", "full_attn_idxs": [1, 3], "intermediate_size": 300, "rope_theta": 1e7}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(old))
    init_checkpoint(str(path), tmp_path / "model")
    assert read_config(tmp_path / "model" / "config.json") == read_config(path)
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["layer_types"][:2] == ["conv", "full_attention"]
    assert written["intermediate_size"] == 256
    assert "full_attn_idxs" not in written
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_an_existing_folder_is_kept_unless_forced(tmp_path: Path) -> None:
    init_checkpoint(tiny_config(), tmp_path / "model", seed=1)
    before = open_checkpoint(str(tmp_path / "model")).digest()
    with pytest.raises(UsageError, match="exists already"):
        init_checkpoint(tiny_config(), tmp_path / "model", seed=2)
    assert open_checkpoint(str(tmp_path / "model")).digest() == before
    init_checkpoint(tiny_config(), tmp_path / "model", seed=2, force=True)
    assert open_checkpoint(str(tmp_path / "model")).digest() != before


def test_a_failure_half_way_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
        raise OSError(28, "No space left on device")

    init_checkpoint(tiny_config(), tmp_path / "model")
    before = open_checkpoint(str(tmp_path / "model")).digest()
    monkeypatch.setattr(random_init, "_random_tensor", fail)
    with pytest.raises(UsageError, match="No space left"):
        init_checkpoint(tiny_config(), tmp_path / "model", force=True)
    assert open_checkpoint(str(tmp_path / "model")).digest() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_does_not_fit_the_disk_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(UsageError, match="do not fit"):
        init_checkpoint(tiny_config(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_experts_biases_are_written_in_fp32(tmp_path: Path) -> None:
    init_checkpoint(replace(tiny_config(), **MOE), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {t.dtype for name, t in tensors.items() if name.endswith("expert_bias")} == {torch.float32}
    assert {t.dtype for name, t in tensors.items() if not name.endswith("expert_bias")} == {torch.bfloat16}


@pytest.mark.parametrize("size", ["350", "8b", "", "no/such/config.json"])
def test_an_unknown_size_is_refused_with_the_known_ones(size: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="350m, 700m"):
        init_checkpoint(size, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="only 'lfm2'"):
        init_checkpoint(str(tmp_path / "config.json"), tmp_path / "model")
    assert not (tmp_path / "model").exists()
