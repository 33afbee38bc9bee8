"""State files: what is saved is what is loaded, the same bytes every time, and nothing replaced unless forced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config
from eager_artifacts import MESSAGES, TOKENS, artifact_of, good_state, tiny_session
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import lfm2_export
from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import FileEntry, TensorSpec
from lfm2_export.chat.saved_state import artifact_digest, load_state, save_state
from lfm2_export.errors import UsageError
from lfm2_export.runtimes.session import Snapshot

VOCAB = tiny_config().vocab_size


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return artifact_of(tiny_config())


@pytest.fixture
def path(artifact: Artifact, tmp_path: Path) -> Path:
    return good_state(artifact, tmp_path)


def assert_same(actual: Snapshot, expected: Snapshot) -> None:
    assert actual.position == expected.position
    assert actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert actual.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(actual.tensors[name], tensor)


@settings(deadline=None, max_examples=25)
@given(tokens=st.lists(st.integers(0, VOCAB - 1), max_size=32), after=st.integers(0, VOCAB - 1))
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, artifact, tokens, after):
    path = tmp_path_factory.mktemp("states") / "x.state"
    session, other = tiny_session(), tiny_session()
    if tokens:
        session.prefill(tokens)
    save_state(path, session.state(), artifact, tokens)
    saved = load_state(path, artifact)
    assert saved.tokens == tuple(tokens)
    assert_same(saved.snapshot, session.state())
    if len(tokens) < session.window:
        other.prefill([1, 2, 3])
        other.restore(saved.snapshot)
        np.testing.assert_array_equal(other.decode(after), session.decode(after))


def test_messages_and_tools_come_along(path, artifact, tmp_path):
    saved = load_state(path, artifact)
    assert list(saved.messages) == MESSAGES
    assert saved.tools is None
    tools = [{"type": "function", "name": "clock", "parameters": {"zone": 1.5}}]
    save_state(tmp_path / "t", saved.snapshot, artifact, TOKENS, tools=tools)
    (loaded,) = load_state(tmp_path / "t", artifact).tools
    assert loaded == tools[0]
    assert list(loaded) == list(tools[0])  # else the template would write another prompt


def test_the_same_state_gives_the_same_bytes_and_is_plain_safetensors(path, artifact, tmp_path):
    saved = load_state(path, artifact)
    save_state(tmp_path / "again", saved.snapshot, artifact, saved.tokens, messages=saved.messages)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == {"conv_state.0", "key.1", "value.1", "conv_state.2"}
        assert file.get_tensor("key.1").shape == (1, 1, len(TOKENS), 8)


def test_half_precision_states_are_kept_as_they_are(path, tmp_path):
    inputs = [TensorSpec(name="key.1", dtype="float16", shape=[1, 1, 1, 1])]
    method = artifact_of(tiny_config()).manifest.methods[0].model_copy(update={"inputs": inputs})
    half = artifact_of(tiny_config(), methods=[method])
    state = tiny_session().state()
    narrow = Snapshot(0, {name: tensor.astype(np.float16) for name, tensor in state.tensors.items()})
    save_state(tmp_path / "half", narrow, half, [])
    assert_same(load_state(tmp_path / "half", half).snapshot, narrow)
    load_state(path, half)  # fp32 is what sessions copy out, whatever the artifact keeps
    double = Snapshot(0, {name: tensor.astype(np.float64) for name, tensor in state.tensors.items()})
    with pytest.raises(UsageError, match="is float64"):
        save_state(tmp_path / "double", double, half, [])


def test_only_files_that_decide_the_numbers_make_another_artifact(artifact):
    digest = artifact_digest(artifact.manifest)
    files = artifact.manifest.files
    other = FileEntry(size=1, sha256="c" * 64)
    for name, same in {"tokenizer.json": True, "model.pte": False, "model.pte_data": False}.items():
        changed = artifact_of(tiny_config(), files={**files, name: other})
        assert (artifact_digest(changed.manifest) == digest) is same


def test_nothing_is_replaced_unless_forced(path, artifact, tmp_path):
    before, state = path.read_bytes(), tiny_session().state()
    with pytest.raises(UsageError, match="exists already"):
        save_state(path, state, artifact, [])
    assert path.read_bytes() == before
    save_state(path, state, artifact, [], force=True)
    assert load_state(path, artifact).snapshot.position == 0
    for nowhere, why in ((tmp_path, "it is a folder"), (tmp_path / "no" / "x", "no folder")):
        with pytest.raises(UsageError, match=why):
            save_state(nowhere, state, artifact, [], force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["good.state"]


def test_a_failed_write_leaves_the_old_file_alone(path, artifact, tmp_path, monkeypatch):
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="No space left"):
        save_state(path, tiny_session().state(), artifact, [], force=True)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["good.state"]


@pytest.mark.parametrize(
    ("tokens", "position", "messages", "reason"),
    [
        ([1, 2], 3, [], "2 tokens cannot have led to position 3"),
        ([0] * 33, 33, [], "does not fit"),
        ([1], 1, [{"role": "user", "content": "x" * (2 << 20)}], "shorten the messages"),
    ],
    ids=["count", "window", "text"],
)
def test_what_could_not_be_loaded_is_not_written(tokens, position, messages, reason, artifact, tmp_path):
    session = tiny_session(window=64)
    session.prefill([1] * position)
    with pytest.raises(UsageError, match=reason):
        save_state(tmp_path / "x", session.state(), artifact, tokens, messages=messages)
    assert list(tmp_path.iterdir()) == []


def test_the_api_finds_both():
    assert lfm2_export.save_state is save_state
    assert lfm2_export.load_state is load_state
