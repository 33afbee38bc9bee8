"""Ways to spoil a good checkpoint. Each must be refused in one line, and leave no output behind.

`HOSTILE` maps a name to a function that spoils the folder of a good tiny checkpoint (see `checkpoints.write_tiny`) and
returns a piece of text that the refusal must contain: the file or key it is about.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], str]
HOSTILE: dict[str, Spoil] = {}

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.embedding_norm.weight"
HUGE = "9" * 5000  # more digits than Python turns into an int by itself


def hostile(function: Spoil) -> Spoil:
    HOSTILE[function.__name__] = function
    return function


# ---- config.json


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config_with(key: str, value: Any, says: str | None = None) -> Spoil:
    def spoil(folder: Path) -> str:
        edit(folder, **{key: value})
        return says or key

    return spoil


HOSTILE |= {
    "another_model_type": config_with("model_type", "llama", "only 'lfm2'"),
    "mixture_of_experts": config_with("model_type", "lfm2_moe", "only 'lfm2'"),
    "no_model_type": config_with("model_type", None),
    "model_type_with_newlines": config_with("model_type", "a\nb" * 1000, "model_type"),
    "text_for_a_number": config_with("hidden_size", "16"),
    "fraction_for_a_number": config_with("hidden_size", 16.5),
    "true_for_a_number": config_with("num_key_value_heads", True),
    "missing_size": config_with("hidden_size", None),
    "zero_size": config_with("vocab_size", 0),
    "negative_size": config_with("hidden_size", -16),
    "absurd_size": config_with("vocab_size", 10**12),
    "absurd_layer_count": config_with("num_hidden_layers", 10**6),
    "nan_rope_theta": config_with("rope_parameters", {"rope_theta": float("nan")}, "rope_theta"),
    "negative_rope_theta": config_with("rope_parameters", {"rope_theta": -1.0}, "rope_theta"),
    "infinite_norm_eps": config_with("norm_eps", float("inf")),
    "integer_beyond_float": config_with("norm_eps", 10**400),
    "scaled_rope": config_with("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}, "yarn"),
    "scaled_rope_in_the_old_spelling": config_with("rope_scaling", {"type": "linear", "factor": 2.0}, "linear"),
    "partial_rotation": config_with("partial_rotary_factor", 0.5),
    "heads_not_divisible": config_with("num_key_value_heads", 3),
    "odd_head_dim": config_with("head_dim", 7),
    "unknown_layer_type": config_with("layer_types", ["conv", "mamba", "conv"], "mamba"),
    "layer_type_of_another_kind": config_with("layer_types", ["conv", ["conv"], "conv"], "layer_types"),
    "too_few_layer_types": config_with("layer_types", ["conv", "full_attention"]),
    "sliding_window": config_with("sliding_window", 128),
    "conv_width_of_one": config_with("conv_L_cache", 1),
    "absurd_conv_width": config_with("conv_L_cache", 10**6),
    "end_token_outside_the_vocabulary": config_with("eos_token_id", 10**6),
    "begin_token_outside_the_vocabulary": config_with("bos_token_id", -5),
    "quantized_already": config_with("quantization_config", {"bits": 4}),
    "another_width_than_the_weights": config_with("intermediate_size", 32, "feed_forward.w1"),
    "more_layers_than_the_weights": config_with("layer_types", ["conv"] * 3, "model.layers.1.conv"),
}


@hostile
def mlp_width_overflows(folder: Path) -> str:
    edit(folder, block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1e14)
    return "intermediate_size"


@hostile
def mlp_width_vanishes(folder: Path) -> str:
    edit(folder, block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1e-9)
    return "intermediate_size"


@hostile
def attention_index_out_of_range(folder: Path) -> str:
    edit(folder, layer_types=None, full_attn_idxs=[1, 9])
    return "full_attn_idxs"


@hostile
def config_missing(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


@hostile
def config_is_a_folder(folder: Path) -> str:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    return "config.json"


@hostile
def config_links_outside(folder: Path) -> str:
    return link_outside(folder, "config.json")


def config_text(text: bytes) -> Spoil:
    def spoil(folder: Path) -> str:
        (folder / "config.json").write_bytes(text)
        return "config.json"

    return spoil


HOSTILE |= {
    "config_empty": config_text(b""),
    "config_truncated": config_text(b'{"model_type": "lfm2", "vocab'),
    "config_is_a_list": config_text(b"[1, 2]"),
    "config_not_utf8": config_text(b"\xff\xfe\x00{}"),
    "config_nested_a_million_deep": config_text(b'{"a":' + b"[" * 500_000),
    "config_with_an_endless_number": config_text(b'{"model_type": "lfm2", "hidden_size": ' + HUGE.encode() + b"}"),
    "config_oversized": config_text(b" " * (2 << 20) + b"{}"),
}


# ---- model.safetensors


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
    return "convert them to safetensors"


@hostile
def weights_link_outside(folder: Path) -> str:
    return link_outside(folder, WEIGHTS)


def link_outside(folder: Path, name: str) -> str:
    """Move a file out of the folder and leave a link in its place."""
    (folder / name).replace(folder.parent / f"outside-{name}")
    (folder / name).symlink_to(folder.parent / f"outside-{name}")
    return name


# ---- sharded weights


def shard(folder: Path) -> dict[str, str]:
    """Split the weights in two shards, and return the index's weight_map."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    homes = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        homes |= dict.fromkeys(part, file)
    write_index(folder, homes)
    return homes


def write_index(folder: Path, homes: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def index_with(change: Callable[[Path, dict[str, str]], Any], says: str = INDEX) -> Spoil:
    def spoil(folder: Path) -> str:
        homes = shard(folder)
        write_index(folder, change(folder, homes) or homes)
        return says

    return spoil


def names(file: str) -> Callable[[Path, dict[str, str]], None]:
    return lambda folder, homes: homes.update({NORM: file})


HOSTILE |= {
    "shard_in_the_parent_folder": index_with(names("../model.safetensors")),
    "shard_by_absolute_path": index_with(names("/etc/model.safetensors")),
    "shard_with_a_zero_byte": index_with(names("a\0b.safetensors")),
    "shard_with_a_newline": index_with(names("a\nb.safetensors")),
    "shard_with_an_endless_name": index_with(names("a" * 5000 + ".safetensors")),
    "shard_pickled": index_with(names("pytorch_model.bin")),
    "shard_is_a_number": index_with(lambda folder, homes: homes | {NORM: 3}),
    "shard_missing": index_with(lambda folder, homes: (folder / homes[NORM]).unlink(), "missing"),
    "index_is_a_list": index_with(lambda folder, homes: ["model.safetensors"]),
    "index_names_a_tensor_nobody_has": index_with(lambda folder, homes: homes | {"x": homes[NORM]}),
    "index_omits_a_tensor": index_with(lambda folder, homes: {k: v for k, v in homes.items() if k != NORM}, NORM),
}


@hostile
def shard_repeats_a_tensor(folder: Path) -> str:
    homes = shard(folder)
    first, second = sorted(set(homes.values()))
    twice = next(name for name, file in homes.items() if file == first)
    save_file(load_file(folder / second) | {twice: load_file(folder / first)[twice]}, folder / second)
    return twice


@hostile
def shard_links_to_itself(folder: Path) -> str:
    file = folder / shard(folder)[NORM]
    file.unlink()
    file.symlink_to(file.name)
    return file.name


@hostile
def index_not_json(folder: Path) -> str:
    shard(folder)
    (folder / INDEX).write_text('{"weight_map": {')
    return INDEX


# ---- tokenizer and chat template


def text_file(name: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return name

    return spoil


def template(source: str) -> Spoil:
    return text_file("chat_template.jinja", source.encode())


HOSTILE |= {
    "tokenizer_empty": text_file("tokenizer.json", b""),
    "tokenizer_is_an_empty_object": text_file("tokenizer.json", b"{}"),
    "tokenizer_is_a_list": text_file("tokenizer.json", b"[]"),
    "tokenizer_nested_deep": text_file("tokenizer.json", b'{"model":' + b"[" * 100_000),
    "tokenizer_settings_not_json": text_file("tokenizer_config.json", b"{"),
    "generation_config_not_json": text_file("generation_config.json", b"{"),
    "template_not_utf8": text_file("chat_template.jinja", b"\xff\xfe"),
    "template_oversized": text_file("chat_template.jinja", b" " * (2 << 20)),
    "template_does_not_compile": template("{% for message in messages %}"),
    "template_nested_deep": template("{{" + "(" * 50_000 + ")" * 50_000 + "}}"),
    "template_reaches_for_python": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template_reaches_for_globals": template("{{ cycler.__init__.__globals__.os.system('true') }}"),
    "template_reads_files": template("{% include '/etc/passwd' %}"),
    "template_changes_the_messages": template("{{ messages.append(1) }}"),
    "template_counts_to_a_billion": template("{% for i in range(10**9) %}x{% endfor %}"),
    "template_writes_without_end": template("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}"),
    "template_repeats_a_terabyte": template("{{ 'a' * 10**12 }}"),
    "template_pads_to_a_terabyte": template("{{ 'a' | center(10**12) }}"),
    "template_doubles_a_text": template(
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s | length }}"
    ),
    "template_calls_itself": template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
}


@hostile
def tokenizer_truncated(folder: Path) -> str:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-200])
    return "tokenizer.json"


@hostile
def tokenizer_of_a_strange_model(folder: Path) -> str:
    edit(folder, "tokenizer.json", model={"type": "Telepathy", "vocab": {}})
    return "tokenizer.json"


@hostile
def tokenizer_without_a_vocabulary(folder: Path) -> str:
    edit(folder, "tokenizer.json", added_tokens=[], model={"type": "BPE", "vocab": {}, "merges": []})
    return "tokenizer.json"


@hostile
def tokenizer_larger_than_the_model(folder: Path) -> str:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    model["vocab"]["one more"] = 1 << 20
    edit(folder, "tokenizer.json", model=model)
    return "vocab_size"


@hostile
def tokenizer_adds_an_unknown_id(folder: Path) -> str:
    edit(
        folder,
        "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [4_000_000], "tokens": ["<s>"]}},
        },
    )
    return "4000000"


@hostile
def tokenizer_oversized(folder: Path) -> str:
    os.truncate(folder / "tokenizer.json", 65 << 20)  # sparse: takes no room on the disk
    return "tokenizer.json"


@hostile
def tokenizer_links_outside(folder: Path) -> str:
    return link_outside(folder, "tokenizer.json")


@hostile
def template_links_outside(folder: Path) -> str:
    return link_outside(folder, "chat_template.jinja")


@hostile
def template_in_the_settings_is_a_number(folder: Path) -> str:
    (folder / "chat_template.jinja").unlink()
    edit(folder, "tokenizer_config.json", chat_template=3)
    return "chat_template"


@hostile
def generation_ends_outside_the_vocabulary(folder: Path) -> str:
    edit(folder, "generation_config.json", eos_token_id=[7, 1 << 20])
    return "generation_config.json"
