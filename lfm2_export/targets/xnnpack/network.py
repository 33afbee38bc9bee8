"""The traced model as a chain of XNNPACK calls with attention between them.

A call of the delegate runs from one attention to the next: the end of an attention block, its MLP, the blocks without
attention that follow, and the next one's queries, keys and values. Outside are the embedding lookup, ExecuTorch's fused
`llama::custom_sdpa`, which reads the filled part of the cache only, `llama::update_cache`, which writes into it, and
picking the last token. Batch 1 only. The token embedding alone and the image part are such networks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, nn

from lfm2_export.graph.cut import Call, cut
from lfm2_export.graph.steps import POSITION, STATE, TOKENS, Network, Step
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import State
from lfm2_export.targets.xnnpack.border import native_shapes, ordered
from lfm2_export.targets.xnnpack.delegate_graph import Extent
from lfm2_export.targets.xnnpack.delegated import Place
from lfm2_export.targets.xnnpack.passes import EMBEDDINGS
from lfm2_export.targets.xnnpack.payload import Payload, written
from lfm2_export.targets.xnnpack.table import Hosted, hosts, lookup_alone, prepared
from lfm2_export.targets.xnnpack.weights import Weights


class DelegatedNetwork(nn.Module):
    """A network as XNNPACK payloads, and between them the steps that the method computes itself.

    `model` has the weights, which go to `weights`, the store that networks of one program share; `known` has the extent
    of everything that is given.
    """

    def __init__(
        self, network: Network, model: nn.Module, known: Mapping[str, Extent], weights: Weights, probed: bool = False
    ) -> None:
        super().__init__()
        self.points: list[str] = []  # what can be seen of a probed network, see `payload.written`
        self.operators = 0  # inside the delegate
        self.parts = nn.ModuleList()
        self.reads: list[tuple[str, ...]] = []  # part by part
        self.makes: list[tuple[str, ...]] = []
        lowered: LoweredBackendModule | None = None
        for part in _parts(network, model, known, weights, probed):
            if isinstance(part, Step):
                hosted, place = _hosted(part, model)
                self._append(_HostStep(hosted, place), part.inputs, part.outputs)
            else:
                call, payload = part
                lowered = payload.lowered()
                self.points += payload.points
                self.operators += payload.graph.operators
                self._append(_DelegateCall(lowered), call.inputs, (*payload.outputs, *payload.points))
        if lowered is not None:
            lowered._named_data_store_output = weights.output()  # one list for all calls

    def _append(self, part: nn.Module, reads: tuple[str, ...], makes: tuple[str, ...]) -> None:
        self.parts.append(part)
        self.reads.append(reads)
        self.makes.append(makes)

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every value of a call that is given or comes out of a part, by name; of a probed network its points too."""
        values = dict(given)
        for part, reads, makes in zip(self.parts, self.reads, self.makes, strict=True):
            values |= dict(zip(makes, part(*[values[value] for value in reads]), strict=True))
        return values


class DelegatedDecoder(DelegatedNetwork):
    """A `Decoder`, for at most `limit` tokens a call, over caches that it writes.

    With `every_row` it gives logits `[1, T, vocab]`, and for the conv states the columns `[1, L-1+T, H]` behind them.
    `embedded`: it is given embeddings instead of tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        limit: int,
        weights: Weights,
        probed: bool = False,
        every_row: bool = False,
        embedded: bool = False,
    ) -> None:
        network = prepared(decoder, every_row, embedded)
        known = _given(decoder, limit, embedded)
        super().__init__(network, decoder, known, weights, probed)
        self.logits, self.state, self.given = network.logits, network.state, next(iter(known))

    def forward(self, tokens: Tensor, position: Tensor, length: None, state: State) -> tuple[Tensor, State]:
        """tokens `[1, T] int64`, position `[1] int64`, no padding → logits `[1, vocab]`, new conv states.

        In the place of tokens may be embeddings `[1, T, H] fp32`. The caches in `state`, `[kv_heads, S, 1, D]`, are
        written in place; conv states, `[1, L-1, H]`, are only read.
        """
        values = self.computed(tokens, position, state)
        return values[self.logits], {name: values[value] for name, value in self.state.items()}

    def computed(self, tokens: Tensor, position: Tensor, state: State) -> dict[str, Any]:
        """Every value of such a call (see `values`)."""
        states = {STATE + name: tensor for name, tensor in state.items()}
        return self.values({self.given: tokens, POSITION: position} | states)


class Lookup(DelegatedNetwork):
    """The lookup of a `Decoder` alone, for at most `limit` tokens a call."""

    def __init__(self, decoder: Decoder, limit: int, weights: Weights) -> None:
        network = lookup_alone(decoder)
        super().__init__(network, decoder, {TOKENS: Extent((1, limit), 1)}, weights)
        self.result = network.logits

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens `[1, T] int64` → embeddings `[1, T, H]`."""
        embeddings: Tensor = self.values({TOKENS: tokens})[self.result]
        return embeddings


def pack(decoder: Decoder, limit: int, weights: Weights) -> None:
    """Store the constants that such a network reads, without making it."""
    for _ in _parts(prepared(decoder), decoder, _given(decoder, limit), weights):
        pass


def _given(decoder: Decoder, limit: int, embedded: bool = False) -> dict[str, Extent]:
    """The extent of what a decoder's network is given: tokens or embeddings first, position, state."""
    first = Extent((1, limit, decoder.config.hidden_size) if embedded else (1, limit), 1)
    known = {EMBEDDINGS if embedded else TOKENS: first, POSITION: Extent((1,))}
    return known | {STATE + name: Extent(shape) for name, shape in native_shapes(decoder.config, window=1).items()}


def _parts(
    network: Network, model: nn.Module, given: Mapping[str, Extent], weights: Weights, probed: bool = False
) -> Iterator[Step | tuple[Call, Payload]]:
    """Yield the steps that the method computes, and the delegate calls as they are written, in a method's order."""
    known = dict(given)
    for part in ordered(network, cut(network, hosts())):
        if isinstance(part, Call):
            payload = written(part, model, known, weights, probed)
            known |= payload.outputs
            yield part, payload
        else:
            hosted, place = _hosted(part, model)
            if hosted.extent is not None:
                known[part.output] = hosted.extent(place, known[part.inputs[0]])
            yield part


def _hosted(step: Step, model: nn.Module) -> tuple[Hosted, Place]:
    return hosts()[step.kind], Place(model.get_submodule(step.path), step.arguments)


def forget_weights(module: nn.Module) -> None:
    """Let go of the packed weights that a network or a program of it refers to.

    Tracing leaves references to both in caches of PyTorch's own: of fake tensors, symbolic shapes and compiled
    functions. The weights would stay in memory for as long as the process lives.
    """
    for each in module.modules():
        if isinstance(each, LoweredBackendModule):
            each._named_data_store_output = None
            each._processed_bytes = b""


class _DelegateCall(nn.Module):
    def __init__(self, lowered: LoweredBackendModule) -> None:
        super().__init__()
        self.lowered = lowered

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(executorch_call_delegate(self.lowered, *inputs))


class _HostStep(nn.Module):
    def __init__(self, hosted: Hosted, place: Place) -> None:
        super().__init__()
        self.compute, self.arguments = hosted.compute, place.arguments
        self.module = None if hosted.module is None else hosted.module(place.module)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        return (self.compute(Place(self.module, self.arguments), *inputs),)
