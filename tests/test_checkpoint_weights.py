"""Reading weights: the same model whatever the dtype and however the files are split, and little memory for it."""

from __future__ import annotations

import json
import os
import re
import shlex
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

from lfm2_export.checkpoint.last_seen import remember, remembered
from lfm2_export.checkpoint.nano import EMBEDDED
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import CheckpointError, UsageError
from lfm2_export.files import links
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


def test_the_hubs_cache_may_link_to_its_blobs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(tiny_checkpoint.iterdir())):
        path.replace(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    checkpoint = open_checkpoint(str(snapshot))
    assert len(checkpoint.digest()) == 64
    assert set(checkpoint.companions()) == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    }


def test_a_licence_comes_along(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "LICENSE.md").write_text("be good")
    (tiny_checkpoint / "LICENSES").mkdir()
    assert open_checkpoint(str(tiny_checkpoint)).companions()["LICENSE.md"].read_text() == "be good"
    assert "LICENSES" not in open_checkpoint(str(tiny_checkpoint)).companions()


def test_names_itself_after_its_folder(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_checkpoint)
    checkpoint = open_checkpoint(".")
    assert (checkpoint.name, checkpoint.revision, checkpoint.random_weights) == ("checkpoint", None, True)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_are_always_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", pytest.fail)
    checkpoint = open_checkpoint(name)
    assert (checkpoint.name, checkpoint.revision, checkpoint.random_weights) == (name, None, False)
    assert "tokenizer.json" in checkpoint.companions()


@pytest.mark.parametrize("source", ["no-such-folder", "a/b/c", "./a", "../a", "/a/b", "a/..", "a b/c", "-a/b"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        open_checkpoint(source)


def test_a_file_is_not_a_checkpoint(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="is a file"):
        open_checkpoint(str(tiny_checkpoint / "model.safetensors"))


@pytest.mark.parametrize("source", ["nano", "folder"])
def test_a_revision_is_only_for_the_hub(source: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="revision"):
        open_checkpoint(str(tiny_checkpoint) if source == "folder" else source, "main")


def hub_process(code: str, cache: Path) -> str:
    """Run `code` offline with a hub cache of its own: the setting is read when the hub client is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    preamble = "from lfm2_export.model.load import open_checkpoint\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_offline_the_hub_cache_serves_branch_and_commit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--owner--tiny"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = f"""
for revision in (None, "main", "{commit}"):
    checkpoint = open_checkpoint("owner/tiny", revision)
    print(checkpoint.name, checkpoint.revision, checkpoint.config.hidden_size)
"""
    assert hub_process(code, tmp_path / "cache").splitlines() == [f"owner/tiny {commit} 16"] * 3


def test_offline_what_the_cache_lacks_is_refused_in_one_line(tmp_path: Path) -> None:
    code = """
try:
    open_checkpoint("owner/other", "v1")
except Exception as error:
    print(type(error).__name__, error)
"""
    lines = hub_process(code, tmp_path / "cache").splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("CheckpointError owner/other: ")
    assert "out of reach" in lines[0]


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


def test_links_that_leave_the_folder_are_followed_only_where_the_user_means_them(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in tiny_checkpoint.iterdir():
        (linked / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match="--follow-links"):
        open_checkpoint(str(linked))
    monkeypatch.setenv("LFM2_EXPORT_FOLLOW_LINKS", "0")  # put back at the end
    links.follow()
    assert open_checkpoint(str(linked)).digest() == open_checkpoint(str(tiny_checkpoint)).digest()


def test_a_checkpoint_is_found_again_where_it_was_last_exported_from(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM2_EXPORT_CACHE", str(tmp_path / "cache"))
    assert remembered("a" * 64) is None
    remember("a" * 64, tiny_checkpoint, None)
    assert remembered("a" * 64) == (tiny_checkpoint, None)
    tiny_checkpoint.rename(tmp_path / "moved")
    assert remembered("a" * 64) is None
    remember("b" * 64, tmp_path / "moved", "owner/base")
    assert remembered("b" * 64) == (tmp_path / "moved", "owner/base")
    assert [note.name for note in (tmp_path / "cache" / "checkpoints").iterdir()] == ["b" * 64]
    monkeypatch.setenv("LFM2_EXPORT_CACHE", "/dev/null/none")
    remember("a" * 64, tmp_path / "moved", None)  # a cache that takes no file is no error


def test_what_is_refused_says_the_command_that_makes_it_usable(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = Lfm2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    shutil.copytree(tiny_checkpoint, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="never loaded") as caught:
        open_checkpoint(str(tmp_path / "pickled"))
    command = str(caught.value).partition("if you trust them: ")[2]
    subprocess.run(shlex.split(command.replace("python", sys.executable, 1)), check=True, capture_output=True)
    usable = dict(open_checkpoint(str(tmp_path / "pickled-safetensors")).tensors())
    assert all(torch.equal(tensor, usable[name]) for name, tensor in open_checkpoint(str(tiny_checkpoint)).tensors())
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r'gguf_file="model\.gguf"'):
        open_checkpoint(str(tmp_path / "model.gguf"))
    config = tiny_checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(CheckpointError, match=r"dequantize\(\)"):
        open_checkpoint(str(tiny_checkpoint))
