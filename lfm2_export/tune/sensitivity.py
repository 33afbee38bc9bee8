"""What each module costs alone: KLD against fp32 with nothing but that module quantized, for every option.

The residual stream before a layer does not depend on what comes later, so it is computed once, and a module's trial
begins at its own layer. Text is gone over in portions: streams of all layers are kept of one alone, and quantizing a
matrix once more for each takes little beside sending the portion through the layers behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lfm2_export.model.decoder import Decoder
from lfm2_export.model.sequences import TokenSequences, batched, pieces
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize.apply import quantize_module
from lfm2_export.quantize.scheme import WeightScheme
from lfm2_export.quantize.streams import Stream
from lfm2_export.quantize.unpack import unpack
from lfm2_export.tune.choices import Unit

_PORTION = 512  # tokens, or one longer sequence: 70 kB each at the 350M shape


@torch.inference_mode()
def sensitivities(
    exact: Decoder, units: Sequence[Unit], sequences: TokenSequences, progress: Progress = silent
) -> list[list[float]]:
    """Mean KLD in nats per token, `[unit][option]`, over every token of `sequences`. Deterministic."""
    portions = list(batched(sequences, _PORTION))
    sums = [[0.0] * len(unit.options) for unit in units]
    for at, portion in enumerate(portions):
        streams = _streams(exact, portion)
        for number, (unit, row) in enumerate(zip(units, sums, strict=True)):
            progress(f"measuring {unit.paths[0]} ({at * len(units) + number + 1} of {len(portions) * len(units)})")
            for place, option in enumerate(unit.options):
                row[place] += _cost(exact, unit, option, portion, streams)
        del streams  # before the next portion's are made
    tokens = sum(map(len, sequences))
    return [[total / tokens for total in row] for row in sums]


@torch.inference_mode()
def whole_cost(
    exact: Decoder, units: Sequence[Unit], chosen: Sequence[WeightScheme], sequences: TokenSequences
) -> float:
    """Mean KLD with every module quantized as chosen, rounded to nearest."""
    trial = _shared_copy(exact)
    for unit, option in zip(units, chosen, strict=True):
        _apply(trial, unit, option)
    unpack(trial)
    total = 0.0
    for portion in batched(sequences, _PORTION):
        ours, theirs = Stream(trial, portion), Stream(exact, portion)
        for layer in range(exact.config.num_hidden_layers):
            ours.advance(trial, layer)
            theirs.advance(exact, layer)
        total += _kld(trial, ours, exact, theirs)
    return total / sum(map(len, sequences))


def copied(stream: Stream) -> Stream:
    """The same stream, to go on from here without moving the first."""
    other = copy.copy(stream)
    other.batches = [copy.copy(batch) for batch in stream.batches]
    return other


def _streams(exact: Decoder, sequences: TokenSequences) -> list[Stream]:
    """The stream before each layer, and behind the last."""
    streams = [Stream(exact, sequences)]
    for layer in range(exact.config.num_hidden_layers):
        streams.append(copied(streams[-1]))
        streams[-1].advance(exact, layer)
    return streams


def _cost(exact: Decoder, unit: Unit, option: WeightScheme, sequences: TokenSequences, streams: list[Stream]) -> float:
    """KLD summed over the tokens of these sequences."""
    trial = _shared_copy(exact)
    _apply(trial, unit, option)
    unpack(trial)
    if unit.paths == ("lm_head",):
        return _kld(trial, streams[-1], exact, streams[-1])
    start = unit.layer or 0
    stream = Stream(trial, sequences) if unit.layer is None else copied(streams[start])
    for layer in range(start, exact.config.num_hidden_layers):
        stream.advance(trial, layer)
    return _kld(trial, stream, exact, streams[-1])


def _shared_copy(decoder: Decoder) -> Decoder:
    """Modules of its own, the same tensors."""
    return copy.deepcopy(decoder, {id(tensor): tensor for tensor in decoder.parameters()})


def _apply(decoder: Decoder, unit: Unit, option: WeightScheme) -> None:
    for rule in unit.rules(option):
        quantize_module(decoder, rule.match, rule)


def _kld(trial: Decoder, ours: Stream, exact: Decoder, theirs: Stream) -> float:
    """Summed KLD of what two models say to their last hidden rows, a few at a time: logits are far wider."""
    total = 0.0
    for mine, other in zip(ours.outputs(trial.embedding_norm), theirs.outputs(exact.embedding_norm), strict=True):
        for start, stop in pieces(len(mine)):
            actual, expected = (
                F.log_softmax(head(rows[start:stop]), dim=-1)
                for head, rows in ((trial.lm_head, mine), (exact.lm_head, other))
            )
            total += float(F.kl_div(actual, expected, reduction="none", log_target=True).sum(-1).double().sum())
    return total
