"""What must hold between a manifest, its model's shape and its files: the state contract, on paper.

Nothing is loaded and no library of a runtime is imported. A manifest that passes can still be of a model that computes
nonsense: that is what parity and the golden cases are for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from lfm2_export.artifact.folder import MANIFEST
from lfm2_export.artifact.manifest import (
    TOKEN_EMBEDDING,
    TOKEN_LOOKUP,
    VISION_ENCODER,
    Manifest,
    MethodSpec,
    TensorSpec,
)
from lfm2_export.artifact.strict_json import parse_json
from lfm2_export.bundle.containers import Container
from lfm2_export.checkpoint.config import LFM2Config, from_dict, token_ids
from lfm2_export.checkpoint.processor_keys import NESTED, OLDER, parse_processor
from lfm2_export.checkpoint.vision_config import VisionConfig, parse_model_config
from lfm2_export.errors import BundleError

_DTYPES = {"float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint16", "uint8", "bool"}
_FLOATS = {"float32", "float16", "bfloat16"}
_STATE = re.compile(
    r"(?:conv_state|past_conv)\.(\d+)|(?:sliding_)?(?:key|value)\.(\d+)|past_key_values\.(\d+)\.(?:key|value)",
    re.A,
)
_REQUIREMENT = re.compile(r"[a-z][a-z0-9-]*(==|>=)[0-9][0-9a-z.]*(\+[a-z0-9.]+)?( with the [A-Za-z]+ backend)?", re.A)
_MAX_DIMENSION = 1 << 31
_MAX_ELEMENTS = 1 << 40
_MAX_METHODS = 64
_MAX_CONFIG, _MAX_TOKENIZER = 1 << 20, 64 << 20
_PROGRAM = b"ET12"  # identifier of ExecuTorch's flatbuffer, at byte 4
_BESIDE = {TOKEN_EMBEDDING, TOKEN_LOOKUP, VISION_ENCODER}  # what gives embeddings where an artifact takes images


class Companions(NamedTuple):
    """What the files beside a model say of it."""

    eos_ids: list[int]  # tokens that end a reply
    vision: VisionConfig | None  # of an artifact that takes images


def check_manifest(manifest: Manifest, where: str) -> LFM2Config:
    """The model's shape, once the manifest agrees with itself.

    Raises BundleError or CheckpointError, one line: an impossible shape, a window or a tensor that does not fit it, a
    state that is incomplete, a method without its file, a gate that failed.
    """
    where = f"{where}: {MANIFEST}"
    config = from_dict(manifest.source.config, f"{where}: source.config")
    if not 1 < manifest.window <= config.max_position_embeddings:
        raise BundleError(
            f"{where}: window {manifest.window}; the model has {config.max_position_embeddings} positions"
        )
    if not _REQUIREMENT.fullmatch(manifest.runtime_requirement):
        raise BundleError(f"{where}: runtime_requirement {manifest.runtime_requirement!r:.80} names no version")
    if (failed := next((gate for gate in manifest.parity if gate.status == "fail"), None)) is not None:
        raise BundleError(f"{where}: {failed.name} failed on {failed.runtime}; it must not be shipped")
    _check_recipe(manifest, where)
    names = [method.name for method in manifest.methods]
    if not 0 < len(names) <= _MAX_METHODS or len(set(names)) != len(names):
        raise BundleError(f"{where}: methods: expected 1 to {_MAX_METHODS} of different names")
    beside = _BESIDE & set(names) if manifest.takes_images else set()
    if manifest.takes_images and (len(beside) != 2 or beside == set(names)):
        raise BundleError(f"{where}: methods: expected {VISION_ENCODER}, one that embeds tokens, and a decoder")
    for method in manifest.methods:
        if method.file not in manifest.shipped:
            raise BundleError(f"{where}: method {method.name!r:.80} names unlisted file {method.file!r:.120}")
        if method.max_tokens < 1 or (method.max_tokens > manifest.window and method.name != VISION_ENCODER):
            raise BundleError(
                f"{where}: {method.name!r:.80}: max_tokens {method.max_tokens} in a window of {manifest.window}"
            )
        _check_tensors(method, f"{where}: {method.name!r:.80}")
        if method.name in beside:
            _check_embeddings(method, config, f"{where}: {method.name!r:.80}")
        else:
            _check_decoder(method, config, manifest, f"{where}: {method.name!r:.80}")
    return config


def check_files(container: Container, prefix: str, manifest: Manifest, config: LFM2Config) -> Companions:
    """Model files of the right kind; a config, a tokenizer and for images a processor that fit, and what they say.

    `prefix` is where the artifact lies in the container. BundleError or CheckpointError, one line.
    """
    for name in {method.file for method in manifest.methods if method.file.endswith(".pte")}:
        head = bytes(next(container.chunks(prefix + name), memoryview(b""))[:8])
        if head[4:] != _PROGRAM:
            raise BundleError(f"{container.where}: {name}: not an ExecuTorch program of format {_PROGRAM.decode()}")
    vision = _check_config(container, prefix, manifest, config)
    tokenizer = _json(container, prefix + "tokenizer.json", _MAX_TOKENIZER)
    if tokenizer is not None and not all(0 <= token < config.vocab_size for token in _vocabulary(tokenizer)):
        raise BundleError(f"{container.where}: tokenizer.json: ids outside the vocabulary of {config.vocab_size}")
    generation = _json(container, prefix + "generation_config.json", _MAX_CONFIG) or {}
    further = token_ids(generation, config.vocab_size, f"{container.where}: generation_config.json")
    return Companions(list(dict.fromkeys(config.eos_token_ids + further)), vision)


def max_error(manifest: Manifest, where: str) -> float:
    """The recipe's gate on an artifact's logits."""
    try:
        value = manifest.recipe["gates"]["lowering"]["max_error"]
    except (LookupError, TypeError) as error:
        raise BundleError(f"{where}: {MANIFEST}: recipe: no gates.lowering.max_error") from error
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BundleError(f"{where}: {MANIFEST}: recipe: gates.lowering.max_error is {value!r:.40}")
    return float(value)


def _check_config(container: Container, prefix: str, manifest: Manifest, config: LFM2Config) -> VisionConfig | None:
    """The image part that config.json describes, where the artifact has one: then with a processor that fits it."""
    where = f"{container.where}: config.json"
    found = _json(container, prefix + "config.json", _MAX_CONFIG)
    decoder, vision = (config, None) if found is None else parse_model_config(found, where)
    if _shape(decoder) != _shape(config):
        raise BundleError(f"{where}: another shape than the manifest's")
    if (vision is not None) != manifest.takes_images:
        raise BundleError(f"{where}: {'of' if vision else 'not of'} a vision-language model, unlike the manifest")
    if vision is not None:
        nested = (_json(container, prefix + NESTED, _MAX_CONFIG) or {}).get("image_processor")
        name, settings = (NESTED, nested) if isinstance(nested, dict) else (OLDER, None)
        settings = settings or _json(container, prefix + OLDER, _MAX_CONFIG)
        if settings is None:
            raise BundleError(
                f"{container.where}: takes images, and has neither {NESTED} nor {OLDER} to prepare them by"
            )
        parse_processor(settings, f"{container.where}: {name}", vision)
    return vision


def _check_recipe(manifest: Manifest, where: str) -> None:
    name = manifest.recipe.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise BundleError(f"{where}: recipe: name is {name!r:.80}")
    for key in ("target", "form", "window"):
        if manifest.recipe.get(key) != (stated := getattr(manifest, key)):
            raise BundleError(
                f"{where}: recipe: {key} is {manifest.recipe.get(key)!r:.80}, the manifest's {stated!r:.80}"
            )


def _check_tensors(method: MethodSpec, where: str) -> None:
    for spec in (*method.inputs, *method.outputs):
        sizes = [size for size in spec.shape if not isinstance(size, str)]
        if spec.dtype not in _DTYPES:
            raise BundleError(f"{where}: {spec.name!r:.80} has dtype {spec.dtype!r:.40}")
        if (
            len(spec.shape) > 8
            or any(not 1 <= size < _MAX_DIMENSION for size in sizes)
            or math.prod(sizes) > _MAX_ELEMENTS
        ):
            raise BundleError(f"{where}: {spec.name!r:.80} has the impossible shape {spec.shape!r:.80}")
    for specs in (method.inputs, method.outputs):
        if len({spec.name for spec in specs}) != len(specs):
            raise BundleError(f"{where}: two tensors of one name")


def _check_embeddings(method: MethodSpec, config: LFM2Config, where: str) -> None:
    """What comes before the decoder gives what it takes."""
    widths = [spec.shape[-1] for spec in method.outputs if spec.shape and spec.dtype in _FLOATS]
    if widths != [config.hidden_size]:
        raise BundleError(f"{where}: expected one output, embeddings of width {config.hidden_size}")


def _check_decoder(method: MethodSpec, config: LFM2Config, manifest: Manifest, where: str) -> None:
    logits = next((spec for spec in method.outputs if spec.name == "logits"), None)
    if logits is None or not logits.shape or logits.shape[-1] != config.vocab_size or logits.dtype not in _FLOATS:
        raise BundleError(f"{where}: expected an output logits over the vocabulary of {config.vocab_size}")
    states = {spec.name: spec for spec in method.inputs if _STATE.fullmatch(spec.name)}
    found, wanted = {_layer(name) for name in states}, set(range(len(config.layer_types)))
    if found != (wanted if manifest.form == "explicit" else set()):
        raise BundleError(f"{where}: has the state of layers {sorted(found)!r:.80}; the {manifest.form} form does not")
    for name, spec in states.items():
        _check_state(spec, config, manifest.window, f"{where}: {name!r:.80}")
    caches = sum(_is_cache(name) for name in states)
    if states and caches != 2 * len(config.attention_layers + config.sliding_layers):
        raise BundleError(f"{where}: {caches} caches, expected a key and a value for each attention layer")


def _layer(name: str) -> int:
    match = _STATE.fullmatch(name)
    assert match is not None
    return int(next(group for group in match.groups() if group is not None))


def _is_cache(name: str) -> bool:
    return "conv" not in name


def _check_state(spec: TensorSpec, config: LFM2Config, window: int, where: str) -> None:
    """Whatever its layout, a state has the model's widths: each once, and beside them only ones and varying names."""
    layer = config.layer_types[_layer(spec.name)]
    if spec.name.startswith("sliding_") or (spec.name.startswith("past_key_values.") and layer == "sliding_attention"):
        columns = (config.sliding_window or 0) - 1
        wanted, kind = [config.num_key_value_heads * config.head_dim, columns], "sliding_attention"
    elif _is_cache(spec.name):
        wanted, kind = [config.num_key_value_heads, config.head_dim], "full_attention"
        if not any(isinstance(size, str) for size in spec.shape[1:]):
            wanted.append(window)
    else:
        columns = config.conv_L_cache - (not spec.name.startswith("past_"))  # transformers.js keeps one more
        wanted, kind = [config.hidden_size, columns], "conv"
    if layer != kind:
        raise BundleError(f"{where}: layer {_layer(spec.name)} of the model is of the other kind")
    found = sorted(size for size in spec.shape if isinstance(size, int) and size != 1)
    if found != sorted(size for size in wanted if size != 1) or spec.dtype not in _FLOATS:
        raise BundleError(f"{where}: {spec.dtype} {spec.shape!r:.80} does not fit the model's {wanted}")


def _shape(config: LFM2Config) -> LFM2Config:
    """All but what a target may state differently for its runtimes: the special tokens, how far positions go."""
    return replace(config, bos_token_id=None, eos_token_ids=(), pad_token_id=None, max_position_embeddings=1)


def _vocabulary(tokenizer: dict[str, Any]) -> Iterable[int]:
    """Every id that the tokenizer's file names, whatever its model; -1 for one that is no number."""
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    added = tokenizer.get("added_tokens")
    ids += [
        token.get("id") if isinstance(token, dict) else None for token in (added if isinstance(added, list) else [])
    ]
    return (token if type(token) is int else -1 for token in ids)


def _json(container: Container, name: str, limit: int) -> dict[str, Any] | None:
    """A companion file's object, None where there is none."""
    if name not in container.sizes:
        return None
    document = parse_json(container.read(name, limit), f"{container.where}: {name}")
    if not isinstance(document, dict):
        raise BundleError(f"{container.where}: {name}: not a JSON object")
    return document
