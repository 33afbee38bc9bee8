"""LoRA adapters as PEFT leaves them: merged, they are what PEFT computes; wrong ones are refused and leave nothing."""

from __future__ import annotations

import gc
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import code_of
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.bundle.pack import bundle
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import CheckpointError, UsageError
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.state import empty_state

TOKENS = torch.arange(5, 25).view(2, 10)
KINDS = {
    "every linear module": {"target_modules": "all-linear"},
    "rank-stabilized": {"target_modules": ["q_proj", "w1", "in_proj"], "use_rslora": True},
    "weight-decomposed": {"target_modules": ["out_proj", "w2"], "use_dora": True},
    "a norm trained whole": {"target_modules": ["v_proj"], "modules_to_save": ["operator_norm"]},
    "a head trained alone": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LFM2_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trained(base: Path, folder: Path, vocabulary: int | None = None, **settings: object) -> Tensor:
    """Write an adapter with random weights as training leaves one; returns its logits, unmerged."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary)
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    with torch.inference_mode():
        return adapted(TOKENS).logits


def logits(checkpoint: Checkpoint) -> Tensor:
    decoder, position = load_decoder(checkpoint), torch.zeros(len(TOKENS), dtype=torch.int64)
    with torch.inference_mode():
        return decoder(TOKENS, position, None, empty_state(checkpoint.config, 32, len(TOKENS)), all_logits=True)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_checkpoint_computes_what_peft_does(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    expected = trained(tiny_checkpoint, tmp_path / "adapter", **KINDS[kind])
    merged = open_checkpoint(str(tmp_path / "adapter"))  # whose config names the base
    assert (logits(merged) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (logits(open_checkpoint(str(tiny_checkpoint))) - expected).abs().max() > 1e-2 * expected.abs().max()


def test_a_vocabulary_made_larger_is_the_merged_models(tiny_checkpoint: Path, tmp_path: Path) -> None:
    size = open_checkpoint(str(tiny_checkpoint)).config.vocab_size + 3
    expected = trained(tiny_checkpoint, tmp_path / "adapter", size, target_modules=["v_proj"])
    merged = open_checkpoint(str(tmp_path / "adapter"))
    assert merged.config.vocab_size == size
    assert (logits(merged) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_artifact_names_both_digests_and_parity_finds_both_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter, moved, output = tmp_path / "adapter", tmp_path / "moved", tmp_path / "artifact"
    trained(tiny_checkpoint, adapter, target_modules=["q_proj", "w1"])
    digest = open_checkpoint(str(tiny_checkpoint)).digest()
    tiny_checkpoint.rename(moved)
    assert code_of("export", str(adapter), "-r", "xnnpack-fp32", "-o", str(output), "-q") == 2  # its base is gone
    made = ("export", str(adapter), "--base", str(moved), "-r", "xnnpack-fp32", "-o", str(output), "-q", "--no-verify")
    assert code_of(*made) == 0
    source = open_artifact(output).manifest.source
    assert source.name == "adapter"
    assert source.random_weights
    assert source.adapter is not None
    assert source.adapter.base_sha256 == digest
    assert source.adapter.weights_sha256 != source.weights_sha256 != digest
    assert (output / "tokenizer.json").read_bytes() == (moved / "tokenizer.json").read_bytes()
    assert code_of("parity", str(output), "-q", "--effort", "quick") == 0


@pytest.mark.slow
def test_several_adapters_give_bundles_whose_equal_files_are_equal_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """An app keeps what two bundles share once: everything but the weights and what describes them."""
    entries, made = [], tmp_path / "out" / "artifacts"
    for name, module in (("first", "q_proj"), ("second", "w1")):
        trained(tiny_checkpoint, tmp_path / name, target_modules=[module])
        entries.append(f"{{source: {tmp_path / name}, base: {tiny_checkpoint}}}")
    plan = f"checkpoints: [{', '.join(entries)}]\nrecipes: [xnnpack-fp32]\nset: [window=64]\neffort: quick\n"
    (tmp_path / "plan.yaml").write_text(plan)
    assert code_of("matrix", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "out"), "-q") == 0
    files = []
    for name in ("first", "second"):
        bundle(made / f"{name}-xnnpack-fp32", "desktop", tmp_path / f"{name}.zip", allow_quick=True)
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            files.append({entry: archive.read(entry) for entry in archive.namelist()})
    assert files[0].keys() == files[1].keys()
    differ = {name for name in files[0] if files[0][name] != files[1][name]}
    assert {name.rpartition("/")[2] for name in differ} == {"model.pte", "manifest.json", "bundle.json", "golden.json"}
    assert {"tokenizer.json", "chat_template.jinja", "config.json"} <= {name.rpartition("/")[2] for name in files[0]}


def test_the_merged_weights_go_with_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path, cache: Path) -> None:
    trained(tiny_checkpoint, tmp_path / "adapter", target_modules=["w1"])
    merged = open_checkpoint(str(tmp_path / "adapter"))
    assert merged.folder.is_relative_to(cache)
    assert merged.place == tmp_path / "adapter"
    del merged
    gc.collect()
    assert [*(cache / "merged").iterdir()] == []


def config_says(**values: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _onto_itself(folder: Path) -> None:
    config_says(base_model_name_or_path=str(folder))(folder)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind of adapter": (config_says(peft_type="IA3"), "expected 'LORA'"),
    "no base named": (config_says(base_model_name_or_path=None), "pass --base"),
    "a base that is not there": (config_says(base_model_name_or_path="/no/such/base"), "/no/such/base"),
    "a base that is an adapter": (_onto_itself, "is an adapter itself"),
    "another rank than the weights have": (config_says(r=8), "does not fit its base"),
    "pickled weights": (_pickled, "pickled"),
    "truncated weights": (_truncated, "adapter_model.safetensors"),
    "not JSON": (lambda folder: (folder / "adapter_config.json").write_text("{") and None, "not valid JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrong_adapter_is_one_line_and_leaves_nothing(
    name: str, tiny_checkpoint: Path, tmp_path: Path, cache: Path
) -> None:
    spoil, expected = HOSTILE[name]
    trained(tiny_checkpoint, tmp_path / "adapter", target_modules=["w1"])
    spoil(tmp_path / "adapter")
    with pytest.raises((CheckpointError, UsageError)) as caught:
        open_checkpoint(str(tmp_path / "adapter"))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [*cache.glob("merged/*")]


def test_a_base_for_a_whole_checkpoint_is_misuse(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "other")
    with pytest.raises(UsageError, match="whole checkpoint"):
        open_checkpoint(str(tiny_checkpoint), base=str(tmp_path / "other"))
