"""The methods of a `.pte`, traced: `forward` for prompts and decode steps, `verify` for drafts, over the same weights.

`verify` gives the logits of every token of its call and leaves the conv states alone. In their place it gives the
columns that each convolution went over, so that the caller can go on from any token (see `explicit.Verifying`).

A decoder that is `embedded` takes embeddings in the place of tokens and is called `text_decoder`. What makes them are
`token_embedding` and `vision_encoder`: ExecuTorch's multimodal runner calls them by these names.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lfm2_export.artifact.manifest import (
    PROBE,
    TEXT_DECODER,
    TOKEN_LOOKUP,
    VERIFY,
    VISION_ENCODER,
    MethodSpec,
    TensorSpec,
)
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.resident import Resident
from lfm2_export.model.state import State
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.targets.xnnpack.border import columns, given, inputs
from lfm2_export.targets.xnnpack.encoder import Encoder, OfImage, OfPatches
from lfm2_export.targets.xnnpack.explicit import Explicit, Verifying
from lfm2_export.targets.xnnpack.network import DelegatedDecoder, Lookup
from lfm2_export.targets.xnnpack.weights import Weights

FILE, FORWARD = "model.pte", "forward"
_COLORS = 3


class Method(NamedTuple):
    """A method before it is lowered."""

    spec: MethodSpec
    program: ExportedProgram
    operators: int  # inside the delegate


def explicit(
    decoder: Decoder, state: State, limit: int, weights: Weights, probed: bool = False, embedded: bool = False
) -> Method:
    """Return the decoder over the caller's state; probed, it also returns what goes into and comes out of modules."""
    network = DelegatedDecoder(decoder, limit, weights, probed, embedded=embedded).eval()
    probes = [TensorSpec(name=f"{PROBE}{point}", dtype="float32", shape=[]) for point in network.points]
    spec = MethodSpec(
        name=TEXT_DECODER if embedded else FORWARD,
        file=FILE,
        inputs=inputs(given(decoder.config, embedded), state, "position"),
        outputs=[_logits(decoder, 1), *probes],
        max_tokens=limit,
    )
    return Method(spec, _exported(Explicit(network), spec, state), network.operators)


def resident(decoder: Decoder, state: State, limit: int, weights: Weights, embedded: bool = False) -> Method:
    """Return the decoder over state of its own."""
    network = DelegatedDecoder(decoder, limit, weights, embedded=embedded).eval()
    spec = MethodSpec(
        name=TEXT_DECODER if embedded else FORWARD,
        file=FILE,
        inputs=inputs(given(decoder.config, embedded), {}, "start_pos"),
        outputs=[_logits(decoder, 1)],
        max_tokens=limit,
    )
    return Method(spec, _exported(Resident(network, state), spec), network.operators)


def verify(decoder: Decoder, state: State, limit: int, weights: Weights, embedded: bool = False) -> Method:
    """Return `verify` over the caller's state, for at most `limit` tokens."""
    network = DelegatedDecoder(decoder, limit, weights, every_row=True, embedded=embedded).eval()
    spec = MethodSpec(
        name=VERIFY,
        file=FILE,
        inputs=inputs(given(decoder.config, embedded), state, "position", reads_convolutions=True),
        outputs=[_logits(decoder, 1, "T"), *columns(state)],
        max_tokens=limit,
    )
    return Method(spec, _exported(Verifying(network), spec, state), network.operators)


def token_embedding(decoder: Decoder, limit: int, weights: Weights) -> Method:
    """Return the lookup alone, for at most `limit` tokens."""
    network = Lookup(decoder, limit, weights).eval()
    spec = MethodSpec(
        name=TOKEN_LOOKUP,
        file=FILE,
        inputs=[given(decoder.config, embedded=False)],
        outputs=[given(decoder.config, embedded=True)],
        max_tokens=limit,
    )
    tokens = _example(spec)
    program = torch.export.export(network, (tokens,), dynamic_shapes=(_varying(limit),), strict=True)
    return Method(spec, program, network.operators)


def patch_encoder(encoder: VisionEncoder, limit: int, weights: Weights) -> Method:
    """Return the image part for patches and their grid, of an image of at most `limit` embeddings."""
    network, config = Encoder(encoder, limit, weights).eval(), encoder.config
    blocks = config.merge**2
    spec = MethodSpec(
        name=VISION_ENCODER,
        file=FILE,
        inputs=[
            TensorSpec(name="patches", dtype="float32", shape=[1, f"{blocks}*T", config.patch_values]),
            TensorSpec(name="grid", dtype="int64", shape=[1, 2]),
        ],
        outputs=[TensorSpec(name="embeddings", dtype="float32", shape=[1, "T", config.output_size])],
        max_tokens=limit,
    )
    call = torch.zeros(1, 2 * blocks, config.patch_values), torch.tensor([[config.merge, 2 * config.merge]])
    patches = {1: blocks * Dim("T", min=1, max=limit)}
    program = torch.export.export(OfPatches(network), call, dynamic_shapes=(patches, None), strict=True)
    return Method(spec, program, network.operators)


def image_encoder(encoder: VisionEncoder, limit: int, weights: Weights) -> Method:
    """Return the image part for an image of whole pixels, of at most `limit` embeddings.

    Its manifest has the side of their square, in embeddings; ExecuTorch holds a tensor to its number of elements, so a
    side may be longer where the other is shorter.
    """
    side, config = math.isqrt(limit - 1) + 1, encoder.config
    network, block = Encoder(encoder, side**2, weights).eval(), config.merge * config.patch_size
    sides: list[int | str] = [f"{block}*rows", f"{block}*columns"]
    spec = MethodSpec(
        name=VISION_ENCODER,
        file=FILE,
        inputs=[TensorSpec(name="image", dtype="float32", shape=[1, _COLORS, *sides])],
        outputs=[TensorSpec(name="embeddings", dtype="float32", shape=[1, "rows*columns", config.output_size])],
        max_tokens=side,
    )
    call = torch.zeros(1, _COLORS, 2 * block, 3 * block)
    varying = {axis: block * Dim(name, min=1, max=side) for axis, name in ((2, "rows"), (3, "columns"))}
    program = torch.export.export(OfImage(network), (call,), dynamic_shapes=(varying,), strict=True)
    return Method(spec, program, network.operators)


def _logits(decoder: Decoder, *rows: int | str) -> TensorSpec:
    return TensorSpec(name="logits", dtype="float32", shape=[*rows, decoder.config.vocab_size])


def _exported(module: nn.Module, spec: MethodSpec, state: State | None = None) -> ExportedProgram:
    call, varying = (_example(spec), torch.tensor([0])), _varying(spec.max_tokens)
    if state is None:
        return torch.export.export(module, call, dynamic_shapes=(varying, None), strict=True)
    dynamic = (varying, None, dict.fromkeys(state))
    return torch.export.export(module, (*call, state), dynamic_shapes=dynamic, strict=True)


def _example(spec: MethodSpec) -> Tensor:
    """The first input of a call of two tokens."""
    first = spec.inputs[0]
    return torch.zeros([2 if size == "T" else int(size) for size in first.shape], dtype=getattr(torch, first.dtype))


def _varying(limit: int) -> dict[int, Dim]:
    return {1: Dim("T", min=1, max=limit)}
