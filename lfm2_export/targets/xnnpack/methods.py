"""The methods of a `.pte`, traced: `forward` for prompts and decode steps, `verify` for drafts, over the same weights.

`verify` gives the logits of every token of its call and leaves the conv states alone. In their place it gives the
columns that each convolution went over, so that the caller can go on from any token (see `explicit.Verifying`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from lfm2_export.artifact.manifest import PROBE, VERIFY, MethodSpec, TensorSpec
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.resident import Resident
from lfm2_export.model.state import State
from lfm2_export.targets.xnnpack.border import columns, inputs
from lfm2_export.targets.xnnpack.explicit import Explicit, Verifying
from lfm2_export.targets.xnnpack.network import DelegatedNetwork
from lfm2_export.targets.xnnpack.weights import Weights

FILE, FORWARD = "model.pte", "forward"


class Method(NamedTuple):
    """A method before it is lowered."""

    spec: MethodSpec
    program: ExportedProgram
    operators: int  # inside the delegate


def explicit(decoder: Decoder, state: State, limit: int, weights: Weights, probed: bool) -> Method:
    """Return `forward` over the caller's state. When probed it also returns what goes into and comes out of modules."""
    network = DelegatedNetwork(decoder, limit, weights, probed).eval()
    probes = [TensorSpec(name=f"{PROBE}{point}", dtype="float32", shape=[]) for point in network.points]
    outputs = [_logits(decoder, 1), *probes]
    spec = MethodSpec(name=FORWARD, file=FILE, inputs=inputs(state, "position"), outputs=outputs, max_tokens=limit)
    return Method(spec, _exported(Explicit(network), limit, state), network.operators)


def resident(decoder: Decoder, state: State, limit: int, weights: Weights) -> Method:
    """Return `forward` over state of its own."""
    network = DelegatedNetwork(decoder, limit, weights).eval()
    spec = MethodSpec(
        name=FORWARD, file=FILE, inputs=inputs({}, "start_pos"), outputs=[_logits(decoder, 1)], max_tokens=limit
    )
    return Method(spec, _exported(Resident(network, state), limit), network.operators)


def verify(decoder: Decoder, state: State, limit: int, weights: Weights) -> Method:
    """Return `verify` over the caller's state, for at most `limit` tokens."""
    network = DelegatedNetwork(decoder, limit, weights, every_row=True).eval()
    spec = MethodSpec(
        name=VERIFY,
        file=FILE,
        inputs=inputs(state, "position", reads_convolutions=True),
        outputs=[_logits(decoder, 1, "T"), *columns(state)],
        max_tokens=limit,
    )
    return Method(spec, _exported(Verifying(network), limit, state), network.operators)


def _logits(decoder: Decoder, *rows: int | str) -> TensorSpec:
    return TensorSpec(name="logits", dtype="float32", shape=[*rows, decoder.config.vocab_size])


def _exported(module: nn.Module, limit: int, state: State | None = None) -> ExportedProgram:
    tokens = {1: Dim("T", min=1, max=limit)}
    call = (torch.zeros(1, 2, dtype=torch.long), torch.tensor([0]))
    if state is None:
        return torch.export.export(module, call, dynamic_shapes=(tokens, None), strict=True)
    dynamic = (tokens, None, dict.fromkeys(state))
    return torch.export.export(module, (*call, state), dynamic_shapes=dynamic, strict=True)
