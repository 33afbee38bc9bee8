"""XNNPACK's table: every kind of step that it can take, and how it is written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from lfm2_export.graph.passes import Rewrite, expanded
from lfm2_export.graph.steps import STATE, Network, Step
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import Decoder
from lfm2_export.targets.xnnpack import delegated, hosted, passes, vision
from lfm2_export.targets.xnnpack.border import native_shapes
from lfm2_export.targets.xnnpack.delegate_graph import Extent, Value
from lfm2_export.targets.xnnpack.delegated import Place
from lfm2_export.targets.xnnpack.embedding import embedding
from lfm2_export.targets.xnnpack.passes import Given


class Split(NamedTuple):
    """A step of the trace that becomes others, before the network is cut into delegate calls."""

    rewrite: Callable[[Given, Step], Sequence[Step]]


class Delegated(NamedTuple):
    """A step inside a delegate call: (graph, place, inputs) → its output or outputs."""

    write: Callable[..., Value | tuple[Value, ...]]


class Hosted(NamedTuple):
    """A step that the method computes itself: (place, inputs) → its output."""

    compute: Callable[..., object]
    extent: Callable[[Place, Extent], Extent] | None = None  # first input's → output's, where a delegate call reads it
    module: Callable[[nn.Module], nn.Module] | None = None  # the decoder's module → what stands for it in the method


Entry = Split | Delegated | Hosted

TABLE: dict[str, Entry] = {
    # of the trace
    "embedding": Split(passes.lookup),
    "rotary": Split(passes.angles),
    "attention": Split(passes.attention),
    "short_conv": Split(passes.short_conv),
    "sliding_attention": Split(passes.sliding_attention),
    "last_valid": Split(passes.last_valid),
    "linear": Delegated(delegated.linear),
    "rms_norm": Delegated(delegated.norm),
    "head_norm": Delegated(delegated.norm),
    "rotate": Delegated(delegated.rotate),
    "silu": Delegated(delegated.silu),
    "mul": Delegated(delegated.multiply),
    "add": Delegated(delegated.add),
    "gate_heads": Delegated(delegated.gate_heads),
    # of the image part
    **{kind: Delegated(write) for kind, write in vision.DELEGATED.items()},
    "neighbours": Hosted(vision.neighbours, hosted.same_extent),
    # of the passes
    "angles": Delegated(delegated.angles),
    "convolve": Delegated(delegated.convolve),
    "sliding_attend": Delegated(delegated.sliding_attend),
    "heads": Delegated(delegated.heads),
    "rows": Delegated(delegated.rows),
    "by_head": Delegated(delegated.by_head),
    "by_row": Delegated(delegated.by_row),
    "swap_pairs": Delegated(delegated.swap_pairs),
    "without_time": Delegated(delegated.without_time),
    "lookup": Hosted(hosted.lookup, hosted.lookup_extent, embedding),
    "start": Hosted(hosted.start),
    "offsets": Hosted(hosted.offsets, hosted.offsets_extent),
    "seen": Hosted(hosted.seen, hosted.same_extent),
    "attend": Hosted(hosted.attend, hosted.same_extent),
    "last_columns": Hosted(hosted.last_columns),
    "last_row": Hosted(hosted.last_row, hosted.last_row_extent),
}


def hosts() -> dict[str, Hosted]:
    """The kinds of steps that the method computes itself."""
    return {kind: entry for kind, entry in TABLE.items() if isinstance(entry, Hosted)}


def prepared(decoder: Decoder, every_row: bool = False, embedded: bool = False) -> Network:
    """Return the trace of a decoder as the steps that are delegated or hosted, in the order in which they are written.

    Weights matter where they change the steps: a skeleton gives those of a decoder that is not quantized. With
    `every_row` the logits are of every token, and instead of its new state a convolution gives the columns that it went
    over, of which the state as of any token is a part. `embedded`: it begins with embeddings.
    """
    given = _given(decoder)
    network = expanded(trace(decoder.config, padded=False), _rewrites(given))
    network = passes.arranged(given, passes.of_every_row(network) if every_row else network)
    return passes.of_embeddings(network) if embedded else network


def lookup_alone(decoder: Decoder) -> Network:
    """Return the part of a decoder's trace that makes embeddings of tokens, as the same steps."""
    network = trace(decoder.config, padded=False)
    (step,) = network.of_kind("embedding")
    return expanded(Network((step,), step.output, {}), _rewrites(_given(decoder)))


def _given(decoder: Decoder) -> Given:
    return Given(decoder, {STATE + name: shape for name, shape in native_shapes(decoder.config, 1).items()})


def _rewrites(given: Given) -> dict[str, Rewrite]:
    return {kind: partial(entry.rewrite, given) for kind, entry in TABLE.items() if isinstance(entry, Split)}
