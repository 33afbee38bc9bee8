"""One file of weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hostile_checkpoints.spoil import EMBEDDING, HOSTILE, NORM, WEIGHTS, Spoil, hostile, link_outside


def split(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of the weights."""
    content = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(folder: Path, header: Any, data: bytes) -> None:
    encoded = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def with_header(change: Callable[[dict[str, Any]], None], says: str) -> Spoil:
    def spoil(folder: Path) -> str:
        header, data = split(folder)
        change(header)
        join(folder, header, data)
        return says

    return spoil


def with_tensors(change: Callable[[dict[str, torch.Tensor]], None], says: str) -> Spoil:
    def spoil(folder: Path) -> str:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        return says

    return spoil


def with_bytes(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(folder: Path) -> str:
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))
        return WEIGHTS

    return spoil


def poison(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.feed_forward.w2.weight"][3, 5] = value

    return change


HOSTILE |= {
    "weights_empty": with_bytes(lambda content: b""),
    "weights_shorter_than_a_length": with_bytes(lambda content: content[:5]),
    "weights_truncated": with_bytes(lambda content: content[:-100]),
    "weights_with_a_tail": with_bytes(lambda content: content + b"\0" * 64),
    "weights_are_text": with_bytes(lambda content: b"version https://git-lfs.github.com/spec/v1\n"),
    "header_longer_than_the_file": with_bytes(lambda content: struct.pack("<Q", 1 << 20) + content[8:]),
    "header_length_beyond_the_format": with_bytes(lambda content: b"\xff" * 8 + content[8:]),
    "header_not_json": with_bytes(lambda content: content[:8] + b"#" + content[9:]),
    "header_nested_deep": with_bytes(lambda content: struct.pack("<Q", 200_000) + b"[" * 200_000),
    "header_is_a_list": with_bytes(lambda content: struct.pack("<Q", 2) + b"[]"),
    "metadata_is_a_list": with_header(lambda header: header.update(__metadata__=[1]), "__metadata__"),
    "tensor_is_a_number": with_header(lambda header: header.update({NORM: 3}), NORM),
    "offsets_out_of_range": with_header(lambda h: h[NORM].update(data_offsets=[1 << 40, (1 << 40) + 32]), NORM),
    "offsets_negative": with_header(lambda h: h[NORM].update(data_offsets=[-32, 0]), NORM),
    "offsets_reversed": with_header(lambda h: h[NORM].update(data_offsets=[32, 0]), NORM),
    "offsets_overlap": with_header(lambda h: h[NORM].update(data_offsets=[0, 32]), "overlap"),
    "offsets_do_not_fit_the_shape": with_header(lambda h: h[NORM].update(shape=[17]), NORM),
    "shape_of_a_thousand_dimensions": with_header(lambda h: h[NORM].update(shape=[1 << 62] * 1000), NORM),
    "shape_of_fractions": with_header(lambda h: h[NORM].update(shape=[16.0]), NORM),
    "dtype_of_integers": with_header(lambda h: h[NORM].update(dtype="I16"), "I16"),
    "dtype_unhashable": with_header(lambda h: h[NORM].update(dtype=["BF16"]), NORM),
    "tensor_missing": with_tensors(lambda tensors: tensors.pop(NORM), NORM),
    "tensor_unexpected": with_tensors(lambda tensors: tensors.update(extra=torch.zeros(2)), "extra"),
    "tensor_named_to_deceive": with_tensors(
        lambda tensors: tensors.update({"\x1b[2Jfine\nall is well": torch.zeros(2)}), "is not part of the model"
    ),
    "tensor_misshaped": with_tensors(lambda t: t.update({NORM: torch.ones(8, dtype=torch.bfloat16)}), "[16]"),
    "tensor_transposed": with_tensors(
        lambda t: t.update({EMBEDDING: t[EMBEDDING].T.contiguous()}), "model.embed_tokens.weight has shape"
    ),
    "weights_not_a_number": with_tensors(poison(float("nan")), "model.layers.2.feed_forward.w2.weight holds NaN"),
    "weights_infinite": with_tensors(poison(float("inf")), "model.layers.2.feed_forward.w2.weight holds NaN"),
    "tied_head_differs": with_tensors(
        lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}), "set tie_word_embeddings false"
    ),
    "tied_head_of_another_dtype": with_tensors(
        lambda t: t.update({"lm_head.weight": t[EMBEDDING].float()}), "set tie_word_embeddings false"
    ),
}


@hostile
def weights_missing(folder: Path) -> str:
    (folder / WEIGHTS).unlink()
    return WEIGHTS


@hostile
def weights_pickled(folder: Path) -> str:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'echo pwned'\ntR.")
    return "never loaded"


@hostile
def weights_link_outside(folder: Path) -> str:
    return link_outside(folder, WEIGHTS)
