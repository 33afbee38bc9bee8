"""The traced model as a chain of XNNPACK calls with attention between them.

A call of the delegate runs from one attention to the next: the end of an attention block, its MLP, the blocks without
attention that follow, and the next one's queries, keys and values. Outside are the embedding lookup, ExecuTorch's fused
`llama::custom_sdpa`, which reads the filled part of the cache only, `llama::update_cache`, which writes into it, and
picking the last token. Batch 1 only.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from lfm2_export.targets.xnnpack.payload import Payload, written
from lfm2_export.targets.xnnpack.table import Hosted, hosts, prepared
from lfm2_export.targets.xnnpack.weights import Weights


class DelegatedNetwork(nn.Module):
    """A `Decoder` whose network is XNNPACK payloads, for at most `limit` tokens a call, over caches that it writes.

    With `every_row` it gives logits `[1, T, vocab]`, and for the conv states the columns `[1, L-1+T, H]` behind them.
    Its constants go to `weights`, which networks of one program share.
    """

    def __init__(
        self, decoder: Decoder, limit: int, weights: Weights, probed: bool = False, every_row: bool = False
    ) -> None:
        super().__init__()
        network = prepared(decoder, every_row)
        self.logits, self.state = network.logits, network.state
        self.points: list[str] = []  # what can be seen of a probed network, see `payload.written`
        self.operators = 0  # inside the delegate
        self.parts = nn.ModuleList()
        self.reads: list[tuple[str, ...]] = []  # part by part
        self.makes: list[tuple[str, ...]] = []
        for part in _parts(network, decoder, limit, weights, probed):
            if isinstance(part, Step):
                hosted, place = _hosted(part, decoder)
                self._append(_HostStep(hosted, place), part.inputs, part.outputs)
            else:
                call, payload = part
                lowered = payload.lowered()
                self.points += payload.points
                self.operators += payload.graph.operators
                self._append(_DelegateCall(lowered), call.inputs, (*payload.outputs, *payload.points))
        lowered._named_data_store_output = weights.output()  # one list for all calls

    def _append(self, part: nn.Module, reads: tuple[str, ...], makes: tuple[str, ...]) -> None:
        self.parts.append(part)
        self.reads.append(reads)
        self.makes.append(makes)

    def forward(self, tokens: Tensor, position: Tensor, length: None, state: State) -> tuple[Tensor, State]:
        """tokens `[1, T] int64`, position `[1] int64`, no padding → logits `[1, vocab]`, new conv states.

        The caches in `state`, `[kv_heads, S, 1, D]`, are written in place; conv states, `[1, L-1, H]`, are only read.
        """
        values = self.computed(tokens, position, state)
        return values[self.logits], {name: values[value] for name, value in self.state.items()}

    def computed(self, tokens: Tensor, position: Tensor, state: State) -> dict[str, Any]:
        """Every value of such a call that comes out of a part, by name; of a probed network its points as well."""
        values: dict[str, Any] = {TOKENS: tokens, POSITION: position}
        values |= {STATE + name: tensor for name, tensor in state.items()}
        for part, reads, makes in zip(self.parts, self.reads, self.makes, strict=True):
            values |= dict(zip(makes, part(*[values[value] for value in reads]), strict=True))
        return values


def pack(decoder: Decoder, limit: int, weights: Weights) -> None:
    """Store the constants that such a network reads, without making it."""
    for _ in _parts(prepared(decoder), decoder, limit, weights):
        pass


def _parts(
    network: Network, decoder: Decoder, limit: int, weights: Weights, probed: bool = False
) -> Iterator[Step | tuple[Call, Payload]]:
    """Yield the steps that the method computes, and the delegate calls as they are written, in a method's order."""
    known = {TOKENS: Extent((1, limit), 1), POSITION: Extent((1,))}
    known |= {STATE + name: Extent(shape) for name, shape in native_shapes(decoder.config, window=1).items()}
    for part in ordered(network, cut(network, hosts())):
        if isinstance(part, Call):
            payload = written(part, decoder, known, weights, probed)
            known |= payload.outputs
            yield part, payload
        else:
            hosted, place = _hosted(part, decoder)
            if hosted.extent is not None:
                known[part.output] = hosted.extent(place, known[part.inputs[0]])
            yield part


def _hosted(step: Step, decoder: Decoder) -> tuple[Hosted, Place]:
    return hosts()[step.kind], Place(decoder.get_submodule(step.path), step.arguments)


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
