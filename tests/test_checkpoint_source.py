"""Where a checkpoint comes from: a folder, its links, the hub's cache, the embedded ones; what is none is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Lfm2ForCausalLM

from lfm2_export.checkpoint.last_seen import remember, remembered
from lfm2_export.checkpoint.nano import EMBEDDED
from lfm2_export.errors import CheckpointError, UsageError
from lfm2_export.files import links
from lfm2_export.model.load import open_checkpoint


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
