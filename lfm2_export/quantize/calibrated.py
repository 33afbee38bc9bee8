"""Weights quantized layer by layer with their inputs in view: GPTQ, smoothing (AWQ), or both.

Two models walk through the calibration sequences side by side, the exact one and the one quantized so far, so every
matrix is rounded for the inputs it will really get, activations rounded included. Of the exact model only one layer is
in memory at a time.

An expert is rounded for the tokens that chose it; one that too few tokens chose by its weights alone (`coverage.py`).

A tied embedding and head that share their storage get their integers first, by the exact model's last hidden states
(a walk of its own) and by plain error in equal parts: the head's products and the embedding's rows both depend on them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import ArtifactError
from lfm2_export.files import ANY, staged_file
from lfm2_export.graph.matrices import mixtures, siblings
from lfm2_export.graph.steps import layer_of
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.layers import FeedForward
from lfm2_export.model.load import load_decoder
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize.apply import install, integers, quantize_module, round_caches
from lfm2_export.quantize.coverage import covers, routed_inputs, seen_by, uncovered
from lfm2_export.quantize.freed_memory import return_at_once
from lfm2_export.quantize.gptq import gptq, undrifted
from lfm2_export.quantize.grid import Grid, grid_of, nearest, searched_scales
from lfm2_export.quantize.method import Method
from lfm2_export.quantize.moments import Moments, moments, second_moment
from lfm2_export.quantize.record import Record, read_record, recorded, replay, write_record
from lfm2_export.quantize.scheme import Rules, rules_by_path
from lfm2_export.quantize.smoothing import smooth
from lfm2_export.quantize.streams import Stream

_EVEN = 1.0  # weight of plain error beside the head's mean one, for a matrix that is embedding and head at once


@torch.no_grad()
def load_calibrated(
    checkpoint: Checkpoint,
    rules: Rules,
    cache: str,
    method: Method,
    sequences: TokenSequences,
    progress: Progress = silent,
    kept: Path | None = None,
) -> tuple[Decoder, Record]:
    """The checkpoint, quantized with `sequences` in view, and the record of it. Deterministic on one machine.

    `kept` is a folder for finished layers, so that a run that was stopped goes on where it was; it must be this
    checkpoint's, these rules', this method's and these sequences' own. Raises CheckpointError for NaN or infinity.
    """
    return_at_once()
    walk = _Walk(checkpoint, rules, method, sequences, progress, kept)
    load_decoder(checkpoint, completed=walk.completed)
    return round_caches(walk.result.eval(), cache), walk.record


def place(weight: Tensor, grid: Grid, method: Method, seen: Moments) -> tuple[Tensor, Tensor]:
    """The matrix moved onto its grid `[rows, columns] fp32`, and the grid's scales `[rows, groups]`."""
    importance = seen.hessian.diagonal()
    if not method.endswith("gptq"):
        scales = searched_scales(weight, grid, importance=importance)
        return nearest(weight, scales, grid), scales
    wanted = undrifted(weight, seen)
    scales = searched_scales(wanted, grid, importance=importance)
    values = gptq(wanted, seen.hessian, scales, grid.highest, grid.lowest, seen.spread)
    return (values.unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(-1)).flatten(1), scales


def last_hidden_moment(checkpoint: Checkpoint, sequences: TokenSequences, progress: Progress = silent) -> Tensor:
    """Σ x xᵀ of what the exact model's head is called with, `[H, H] fp32`. One layer is in memory at a time."""
    streams: list[Stream] = []
    found: list[Tensor] = []

    def completed(decoder: Decoder, part: str) -> None:
        if part == "embed_tokens":
            streams.append(Stream(decoder, sequences))
        elif (layer := layer_of(part)) is not None:
            layers = decoder.config.num_hidden_layers
            progress(f"weights: inputs of the shared embedding and head, layer {layer + 1} of {layers}")
            streams[0].advance(decoder, layer)
            decoder.layers[layer] = nn.Identity()
        elif part == "embedding_norm":
            found.append(second_moment(streams[0].outputs(decoder.embedding_norm)))

    load_decoder(checkpoint, completed=completed)
    return found[0]


class _Walk:
    """The exact model, arriving part by part, and the quantized `result` growing beside it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        rules: Rules,
        method: Method,
        sequences: TokenSequences,
        progress: Progress,
        kept: Path | None,
    ) -> None:
        self.checkpoint, self.method, self.sequences = checkpoint, method, sequences
        self.progress, self.kept = progress, kept
        self.rules = rules_by_path(checkpoint.config, rules)
        self.schemes = {path: scheme for path, rule in self.rules.items() if (scheme := integers(rule))}
        self.tied = checkpoint.config.tie_word_embeddings
        self.shared = self.tied and "lm_head" in self.schemes
        self.shared = self.shared and self.schemes.get("embed_tokens") == self.schemes["lm_head"]
        self.record: Record = {}
        with torch.device("meta"):
            self.result = Decoder(checkpoint.config)

    def completed(self, exact: Decoder, part: str) -> None:
        """A top-level part of the exact model has arrived: quantize it, and let go of the exact one."""
        if part == "embed_tokens":
            self._embedding(exact)
            self.streams = Stream(self.result, self.sequences), Stream(exact, self.sequences)
        elif (layer := layer_of(part)) is not None:
            self._layer(exact, layer)
            for stream, decoder in zip(self.streams, (self.result, exact), strict=True):
                stream.advance(decoder, layer)
            exact.layers[layer] = nn.Identity()
        elif part == "embedding_norm":
            self.result.embedding_norm = exact.embedding_norm
        if part == "lm_head" or (part == "embedding_norm" and self.tied):
            self._head(exact)

    def _embedding(self, exact: Decoder) -> None:
        self.result.embed_tokens = copy.copy(exact.embed_tokens)
        self.result.embed_tokens.weight = exact.embed_tokens.weight
        self._done("embed_tokens", lambda: self._place_embedding(exact.embed_tokens.weight))

    def _place_embedding(self, weight: Tensor) -> None:
        scheme = self.schemes.get("embed_tokens")
        if scheme is None:
            quantize_module(self.result, "embed_tokens", self.rules["embed_tokens"])
            return
        grid = grid_of(scheme)
        if self.shared:
            hessian = last_hidden_moment(self.checkpoint, self.sequences, self.progress)
            hessian = hessian / hessian.diagonal().mean() + _EVEN * torch.eye(len(hessian))
            placed = place(weight, grid, self.method, Moments(hessian, hessian))
        else:
            scales = searched_scales(weight, grid)
            placed = nearest(weight, scales, grid), scales
        self._install("embed_tokens", *placed)

    def _layer(self, exact: Decoder, layer: int) -> None:
        part, block = f"layers.{layer}", exact.block(layer)
        self.progress(f"weights: layer {layer + 1} of {exact.config.num_hidden_layers} by {self.method}")
        self.result.layers[layer] = copy.deepcopy(block, {id(tensor): tensor for tensor in block.parameters()})
        unsmoothed = copy.deepcopy(block, {id(tensor): tensor for tensor in block.parameters()})
        self._done(part, lambda: self._place_layer(exact, layer))
        exact.layers[layer] = unsmoothed  # so that a run that goes on from kept layers sees the same bits

    def _place_layer(self, exact: Decoder, layer: int) -> None:
        if self.method.startswith("awq"):
            self._smooth(exact, layer)
            block = exact.block(layer)
            self.result.layers[layer] = copy.deepcopy(block, {id(tensor): tensor for tensor in block.parameters()})
        for group in siblings(exact.config, layer):
            if any(path in self.schemes for path in group.paths):
                inputs, exact_inputs = (
                    stream.inputs(decoder, layer, group.paths[0])
                    for stream, decoder in zip(self.streams, (self.result, exact), strict=True)
                )
                seen = moments(inputs, exact_inputs)
            for path in group.paths:
                if path in self.schemes:
                    weight = cast(nn.Linear, exact.get_submodule(path)).weight
                    self._install(path, *place(weight, grid_of(self.schemes[path]), self.method, seen))
                else:
                    quantize_module(self.result, path, self.rules[path])
        for path in mixtures(exact.config, layer):
            self._place_experts(exact, layer, path)

    def _place_experts(self, exact: Decoder, layer: int, path: str) -> None:
        """Round each expert for the tokens that chose it in the quantized model, in the exact one as well."""
        inputs = routed_inputs(self.streams, (self.result, exact), layer, path)
        counts: list[int] = []
        for number in range(exact.config.num_experts):
            one = f"{path}.{number}"
            ours, theirs = (cast(FeedForward, decoder.get_submodule(one)) for decoder in (self.result, exact))
            x, y = inputs.of(number)
            counts.append(len(x))
            self._place_together(exact, (f"{one}.w1", f"{one}.w3"), x, y)
            self._place_together(exact, (f"{one}.w2",), ours.hidden(x), theirs.hidden(y))
        self.record |= {seen_by(path): torch.tensor(counts)}
        if few := uncovered(self.record, exact.config, path):
            self.progress(f"weights: seen too little, rounded by mse: {few}")

    def _place_together(self, exact: Decoder, paths: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """Round an expert's matrices of one input: `x` in the quantized model, `y` in the exact one."""
        enough = covers(len(x), x.shape[1])
        seen = moments(iter((x,)), iter((y,))) if enough else None
        for path in paths:
            if path in self.schemes and seen is not None:
                weight = cast(nn.Linear, exact.get_submodule(path)).weight
                self._install(path, *place(weight, grid_of(self.schemes[path]), self.method, seen))
                continue
            quantize_module(self.result, path, self.rules[path], "mse")
            if path in self.schemes:
                self.record |= recorded(self.result, path, self.schemes[path])

    def _smooth(self, exact: Decoder, layer: int) -> None:
        """Fold scalings into the exact layer, which stays exact, by inputs as the quantized layers before it give."""
        part, block, stream = f"layers.{layer}", exact.block(layer), self.streams[0]
        before = dict(block.named_parameters())
        grids = {path: grid_of(scheme) for path, scheme in self.schemes.items() if layer_of(path) == layer}
        smooth(exact, layer, grids, lambda path: second_moment(stream.inputs(exact, layer, path)))
        for name, tensor in block.named_parameters():
            path = f"{part}.{name}"
            if tensor is not before[name] and path.removesuffix(".weight") not in grids:
                self.record[path] = tensor.detach()

    def _head(self, exact: Decoder) -> None:
        norm = exact.embedding_norm
        self.result.lm_head = copy.copy(exact.lm_head)
        self.result.lm_head.weight = exact.lm_head.weight

        def place_head() -> None:
            scheme = self.schemes.get("lm_head")
            if scheme is None:
                quantize_module(self.result, "lm_head", self.rules["lm_head"])
                return
            quantized, exactly = (stream.outputs(norm) for stream in self.streams)
            seen = moments(quantized, exactly)
            self._install("lm_head", *place(exact.lm_head.weight, grid_of(scheme), self.method, seen))

        if self.shared:
            replay(self.result, "lm_head", self.record, self.rules)
        else:
            self._done("lm_head", place_head)

    def _done(self, part: str, work: Callable[[], None]) -> None:
        """Do the work and keep its record, or take the record that an earlier run kept."""
        file = self.kept / f"{part}.safetensors" if self.kept else None
        found = None if file is None else _kept_record(file)
        if found is not None:
            replay(self.result, part, found, self.rules)
            self.record |= found
            return
        work()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(file, True, ANY) as new:
                write_record(new, {name: t for name, t in self.record.items() if name.startswith(f"{part}.")})

    def _install(self, path: str, weight: Tensor, scales: Tensor) -> None:
        install(self.result, path, self.rules[path], weight, scales)
        self.record |= recorded(self.result, path, self.schemes[path])


def _kept_record(file: Path) -> Record | None:
    """What an earlier run kept; None where there is nothing, or a damaged file: then the layer is quantized again."""
    try:
        return read_record(file) if file.is_file() else None
    except ArtifactError:
        return None
