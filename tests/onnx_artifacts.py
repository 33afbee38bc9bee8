"""ONNX artifacts of small random models."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from decoders import random_decoder, relative, tokens

from lfm2_export import recipes
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import empty_state
from lfm2_export.quantize.apply import quantize
from lfm2_export.quantize.scheme import QuantizationRule
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.onnxruntime import RUNTIME, OnnxRuntimeSession
from lfm2_export.targets.onnx.target import TARGET

WINDOW = 48
FP32_ERROR = 1e-5  # measured 1e-6 to 3e-6
FLIP_ERROR = 0.15  # one int8 activation rounded the other way; measured up to 5e-2 on these narrow random models
QUANTIZED = ["onnx-int8", "onnx-int4"]
HALF = ["onnx-fp16", "onnx-q4f16"]
CONVOLUTIONS = ("plain", "fused", "channels_last")
HALF_ERROR = 0.01  # of fp16 graphs; measured 1e-3 to 3e-3


def recipe(name: str = "onnx-fp32", float_activations: bool = False, **changes: Any) -> Recipe:
    """A built-in recipe for the narrow random models, whose rows hold no groups of 128."""
    loaded = recipes.load(name)
    loaded = loaded.model_copy(update={"quantization": tuple(map(_narrow, loaded.quantization))})
    if float_activations:
        rules = tuple(rule.model_copy(update={"activation": None}) for rule in loaded.quantization)
        changes["quantization"] = rules
    return loaded.model_copy(update={"window": WINDOW, **changes})


def _narrow(rule: QuantizationRule) -> QuantizationRule:
    if rule.weight is None or not rule.weight.group:
        return rule
    return rule.model_copy(update={"weight": rule.weight.model_copy(update={"group": min(rule.weight.group, 32)})})


def lower(decoder: Decoder, made_by: Recipe, folder: Path) -> Manifest:
    """Lower, and as much of a manifest as the session reads."""
    TARGET.check(made_by, decoder.config)
    lowered = TARGET.lower(decoder, made_by, folder, lambda _: None)
    source = SimpleNamespace(config={"vocab_size": decoder.config.vocab_size})
    fields = {"form": made_by.form, "window": made_by.window, "speculation": lowered.speculation, "source": source}
    return Manifest.model_construct(target="onnx", methods=lowered.methods, **fields)


def model_file(folder: Path) -> Path:
    """The one graph of an artifact folder."""
    (found,) = (folder / "onnx").glob("*.onnx")
    return found


def pair(decoder: Decoder, folder: Path, made_by: Recipe | None = None) -> tuple[OnnxRuntimeSession, EagerSession]:
    """The artifact's session and the eager session of the very model it was lowered from."""
    made_by = made_by or recipe()
    quantized = quantize(copy.deepcopy(decoder), made_by.quantization, made_by.cache)
    return RUNTIME.open_session(folder, lower(quantized, made_by, folder)), EagerSession(quantized, WINDOW)


def batch_feeds(shape: LFM2Config, ids: np.ndarray, positions: list[int], lengths: list[int]) -> dict[str, np.ndarray]:
    """A call's inputs as genai sends them, with empty states of `WINDOW` columns."""
    rows, count = ids.shape
    total = max(positions) + count
    mask = np.zeros((rows, total), dtype=np.int64)
    for row, (position, length) in enumerate(zip(positions, lengths, strict=True)):
        mask[row, : position + length] = 1
    feeds = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.array(positions)[:, None] + np.arange(count)[None],
    }
    for name, tensor in empty_state(shape, WINDOW, rows).items():
        kind, layer = name.split(".")
        if kind == "conv_state":  # one column more than needed: garbage there must not matter
            garbage = np.full((*tensor.shape[:2], 1), np.nan, dtype=np.float32)
            feeds[f"past_conv.{layer}"] = np.concatenate((garbage, tensor.numpy()), axis=2)
        else:
            feeds[f"past_key_values.{layer}.{kind}"] = tensor.numpy()
    return feeds


def weight_only(name: str) -> EagerSession:
    """Eager with a recipe's integer weights and unrounded activations."""
    return EagerSession(quantize(random_decoder(), recipe(name, float_activations=True).quantization), WINDOW)


def step_errors(session: OnnxRuntimeSession, eager: EagerSession, count: int = 40) -> list[float]:
    """How far each of so many decode steps is from eager's, taken from eager's own state."""
    errors = []
    for token in tokens(count):
        errors.append(relative(session.decode(token), eager.decode(token)))
        session.restore(eager.state())  # a flip in the past is not counted again
    return errors
