"""The quantized eager model an artifact was lowered from, as the proof needs it: made again, or read back.

Rounding by a weight's own values is done again from the checkpoint. Integers that were chosen with calibration tokens
in view are read from the artifact's `quantized.safetensors`, whose checksum the manifest holds: another machine sums in
another order and would end at other integers, and on a large model it would take an hour. What reading back cannot
show, that these integers are this checkpoint's, shows in the quality gates: they compare with the checkpoint itself.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lfm2_export import targets
from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import MissingDependencyError, UsageError
from lfm2_export.model.decoder import Decoder
from lfm2_export.quantize.apply import BlockActivationLinear, load_quantized
from lfm2_export.quantize.calibration import read_sequences
from lfm2_export.quantize.record import FILE, load_recorded, read_record
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes._slices import SliceSession, pte_call
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session


def reference(artifact: Artifact, decoder: Decoder) -> Session:
    """Return what the artifact must equal, in eager: the quantized decoder, or what its target makes of it.

    Raises ArtifactError when the artifact's calibration tokens are missing or wrong.
    """
    manifest = artifact.manifest
    recipe = Recipe.model_validate(manifest.recipe)
    sequences = read_sequences(artifact.folder, decoder.config) if recipe.calibration is not None else ()
    methods = targets.find(manifest.target).reference(decoder, recipe, sequences)
    if methods is None:
        return EagerSession(decoder, manifest.window)
    call = pte_call(lambda name, inputs: methods[name](*inputs), manifest)
    return SliceSession(call, manifest, "eager", torch.__version__)


def reference_device(name: str) -> str:
    """Return the device, as torch spells it, of a reference on the `name`d processor: "cpu" or "cuda".

    Raises UsageError for another name, and MissingDependencyError where PyTorch finds no such processor.
    """
    if name not in ("cpu", "cuda"):
        raise UsageError(f"no reference {name!r}; there are cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(f"PyTorch {torch.__version__} finds no CUDA GPU for --reference cuda")
    return name


def reference_version(device: str) -> str:
    """Return which PyTorch computes a reference, and on what."""
    on = torch.cuda.get_device_name() if device == "cuda" else f"the CPU ({platform.machine()})"
    return f"PyTorch {torch.__version__} on {on}"


def quantized_model(artifact: Artifact, checkpoint: Checkpoint) -> Decoder:
    """Return the model in eager PyTorch.

    Raises CheckpointError, and ArtifactError when the stored integers are missing or another model's.
    """
    recipe = Recipe.model_validate(artifact.manifest.recipe)
    rules, cache = recipe.quantization, recipe.cache
    if recipe.is_calibrated:
        return load_recorded(checkpoint, rules, cache, read_record(artifact.folder / FILE))
    return load_quantized(checkpoint, rules, cache, recipe.weights)


@contextmanager
def rounded_as_in(runtime: Runtime, decoder: Decoder) -> Iterator[bool]:
    """Let products round their inputs in a runtime's own blocks meanwhile; whether that is another arithmetic."""
    rounding = [module for module in decoder.modules() if isinstance(module, BlockActivationLinear)]
    before = [module.group for module in rounding]
    for module, group in zip(rounding, before, strict=True):
        rows, columns = module.weight.shape
        if group is not None:
            module.group = runtime.activation_block(rows, columns, group)
    try:
        yield [module.group for module in rounding] != before
    finally:
        for module, group in zip(rounding, before, strict=True):
            module.group = group
