"""A state file of anyone: whatever is wrong with it is said in one line, and no flipped bit goes unseen."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config
from eager_artifacts import artifact_of, good_state
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load, save

from lfm2_export.artifact.folder import Artifact
from lfm2_export.chat import saved_state
from lfm2_export.chat.saved_state import load_state
from lfm2_export.errors import StateFileError

KEY = "lfm2_export_state"
VOCAB = tiny_config().vocab_size


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return artifact_of(tiny_config())


@pytest.fixture
def path(artifact: Artifact, tmp_path: Path) -> Path:
    return good_state(artifact, tmp_path)


def refusal(path: Path, artifact: Artifact) -> str:
    with pytest.raises(StateFileError) as caught:
        load_state(path, artifact)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 500
    assert caught.value.exit_code == 2
    return message


def document_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()[KEY].partition(" ")[2])


def forged(change: Callable[[dict, dict], object]) -> Callable[[Path], None]:
    """A file changed by someone who knows the checksum: `change(document, tensors)`."""

    def corrupt(path: Path) -> None:
        document, tensors = document_of(path), dict(load(path.read_bytes()))
        change(document, tensors)
        text = json.dumps(document)
        path.write_bytes(save(tensors, {KEY: f"{saved_state._checksum(text, tensors)} {text}"}))

    return corrupt


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A changed safetensors header, its length made right."""

    def corrupt(path: Path) -> None:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        document = json.loads(data[8 : 8 + length])
        change(document)
        text = json.dumps(document).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return corrupt


def metadata(text: str | None) -> Callable[[Path], None]:
    return header(lambda d: d.update({"__metadata__": {} if text is None else {KEY: f"{'0' * 64} {text}"}}))


def _sparse(path: Path) -> None:
    os.truncate(path, 1 << 40)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _longer(_: dict, tensors: dict) -> None:
    tensors["key.1"] = np.concatenate([tensors["key.1"]] * 2, axis=2)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p.unlink(), "no such file"),
    "a folder": (_folder, "no such file"),
    "a pipe": (_fifo, "no such file"),
    "empty": (raw(lambda _: b""), "too short"),
    "not safetensors": (raw(lambda _: b"PK\x03\x04" * 50), "a header of"),
    "pickle": (raw(lambda _: b"\x80\x04\x95" + b"\0" * 200), "a header of"),
    "absurd header length": (raw(lambda d: struct.pack("<Q", (1 << 64) - 1) + d[8:]), "a header of"),
    "header past the end": (raw(lambda d: struct.pack("<Q", len(d)) + d[8:]), "truncated"),
    "header is a list": (raw(lambda _: struct.pack("<Q", 2) + b"[]"), "expected a JSON object"),
    "header nests endlessly": (raw(lambda _: struct.pack("<Q", 200_000) + b"[" * 200_000), "not valid JSON"),
    "a terabyte": (_sparse, "a state of this artifact has at most"),
    "cut by one byte": (raw(lambda d: d[:-1]), "truncated"),
    "a byte more": (raw(lambda d: d + b"\0"), "follow the last tensor"),
    "no metadata": (metadata(None), "not a saved state"),
    "metadata is not JSON": (metadata("{"), "not valid JSON"),
    "metadata nests endlessly": (metadata("[" * 100_000), "not valid JSON"),
    "metadata with a number of a million digits": (metadata('{"version":' + "9" * 1_000_000 + "}"), "not valid JSON"),
    "metadata is a list": (metadata("[]"), "format version None"),
    "format of the future": (forged(lambda d, _: d.update(version=2)), "format version 2"),
    "missing key": (forged(lambda d, _: d.pop("window")), "window"),
    "unknown key": (forged(lambda d, _: d.update(surprise=1)), "surprise"),
    "wrong type": (forged(lambda d, _: d.update(tokens="many")), "tokens"),
    "true for a token": (forged(lambda d, _: d.update(tokens=[True] * 5)), "tokens"),
    "message without a role": (forged(lambda d, _: d["messages"].append({"content": "x"})), "no role"),
    "no checksum": (header(lambda d: d.update(__metadata__={KEY: "{}"})), "not valid JSON"),
    "checksum of another": (
        header(lambda d: d["__metadata__"].update({KEY: "0" * 64 + d["__metadata__"][KEY][64:]})),
        "checksum",
    ),
    "another spelling": (
        header(lambda d: d["__metadata__"].update({KEY: d["__metadata__"][KEY].replace("\\u00e9", "\\u00E9")})),
        "checksum",
    ),
    "another artifact": (forged(lambda d, _: d.update(artifact="0" * 64)), "another artifact"),
    "another window": (forged(lambda d, _: d.update(window=64)), "saved at window 64, this artifact's is 32"),
    "position without tokens": (forged(lambda d, _: d.update(tokens=[])), "position 5 with 0 tokens"),
    "position past the window": (forged(lambda d, _: d.update(position=33, tokens=[1] * 33)), "position 33"),
    "huge position": (forged(lambda d, _: d.update(position=10**30)), "position 1000"),
    "negative position": (forged(lambda d, _: d.update(position=-1)), "position"),
    "token past the vocabulary": (forged(lambda d, _: d.update(tokens=[VOCAB] * 5)), "outside the vocabulary"),
    "negative token": (forged(lambda d, _: d.update(tokens=[-1] * 5)), "outside the vocabulary"),
    "fewer columns than its position": (forged(lambda d, _: d.update(position=6, tokens=[1] * 6)), "does not fit"),
    "more columns than its position": (forged(_longer), "does not fit"),
    "double precision": (forged(lambda _, t: t.update({"key.1": t["key.1"].astype("f8")})), "dtype 'F64'"),
    "whole numbers": (forged(lambda _, t: t.update({"key.1": t["key.1"].astype("i4")})), "dtype 'I32'"),
    "half precision": (forged(lambda _, t: t.update({"key.1": t["key.1"].astype("f2")})), "key.1 is float16"),
    "bfloat16": (header(lambda d: d["key.1"].update(dtype="BF16", shape=[2, 1, 5, 8])), "BF16"),
    "tensor missing": (forged(lambda _, t: t.pop("key.1")), "other names"),
    "tensor more": (forged(lambda _, t: t.update(extra=t["key.1"])), "other names"),
    "tensor of another shape": (forged(lambda _, t: t.update({"key.1": t["key.1"].reshape(5, 1, 1, 8)})), "fit"),
    "conv state too wide": (forged(lambda _, t: t.update({"conv_state.0": np.zeros((1, 16, 3), "f4")})), "fit"),
    "shapes swapped without telling": (header(lambda d: d["key.1"].update(shape=[5, 1, 1, 8])), "checksum"),
    "names swapped": (
        forged(lambda _, t: t.update({"key.1": t["value.1"]}) or t.pop("value.1")),
        "other names",
    ),
    "tensors overlap": (header(lambda d: d["key.1"].update(data_offsets=d["value.1"]["data_offsets"])), "overlap"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name, path, artifact):
    corrupt, expected = HOSTILE[name]
    load_state(path, artifact)
    corrupt(path)
    assert expected in refusal(path, artifact)


def test_a_state_of_another_artifact_or_window_is_refused(path):
    assert "another artifact" in refusal(path, artifact_of(tiny_config(), sha256="d" * 64))
    assert "saved at window 32" in refusal(path, artifact_of(tiny_config(), window=48))
    wider = dataclasses.replace(tiny_config(), hidden_size=32)
    assert "another artifact" in refusal(path, artifact_of(wider, sha256="d" * 64))


def test_a_flipped_bit_is_seen_in_every_byte(path, artifact):
    good, chance = path.read_bytes(), random.Random(0)
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        refusal(path, artifact)


def test_a_file_cut_anywhere_is_refused(path, artifact):
    good = path.read_bytes()
    for end in range(0, len(good), 7):
        path.write_bytes(good[:end])
        refusal(path, artifact)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=400), st.integers(0, 300))
def test_noise_is_refused(tmp_path_factory, artifact, noise, length):
    path = tmp_path_factory.mktemp("noise") / "x.state"
    path.write_bytes(struct.pack("<Q", length) + noise)
    refusal(path, artifact)
