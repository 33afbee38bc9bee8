"""Token sequences through an eager model, whole and side by side: every state and every row of logits on the way.

A case, however it is cut into calls, asks for the logits after some of its tokens and for the state after the last, so
one pass over each distinct sequence answers all cases and all runtimes. At true sizes the same, call by call, took
most of a proof's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm2_export.graph.interpret import interpret
from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS, Network
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import empty_state, is_cache
from lfm2_export.runtimes.session import Snapshot

Tokens = tuple[int, ...]


class Step(NamedTuple):
    """One decode step: the state that it starts from, its logits `[vocab]`, the state it ends with."""

    token: int
    before: Snapshot
    logits: np.ndarray
    after: Snapshot


class Passage:
    """One sequence's way from an empty state: its final hidden rows, its keys and values, its convolutions' columns."""

    def __init__(self, decoder: Decoder, hidden: Tensor, columns: dict[str, Tensor]) -> None:
        """hidden `[T, H]`; columns `[kv_heads, T, head_dim]` of a cache, `[T, channels]` of other states, by name."""
        self._decoder, self._hidden, self._columns = decoder, hidden, columns

    @torch.inference_mode()
    def logits(self, ends: Sequence[int]) -> np.ndarray:
        """Return `[len(ends), vocab] fp32`: the logits after that many tokens."""
        network = trace(self._decoder.config, padded=True)
        (picked,) = (step.output for step in network.of_kind("last_valid"))
        rows = self._hidden[torch.tensor([end - 1 for end in ends])]
        return interpret(network, self._decoder, {picked: rows}, [network.logits])[network.logits].cpu().numpy()

    def state(self, position: int) -> Snapshot:
        """Return the state after that many tokens."""
        tensors = {}
        for name, shape in _shapes(self._decoder).items():
            columns = self._columns[name]
            if is_cache(name):
                tensors[name] = columns[:, :position].unsqueeze(0).numpy().copy()
            else:
                past = torch.cat((torch.zeros(shape[2], columns.shape[1]), columns[:position]))[-shape[2] :]
                tensors[name] = past.T.unsqueeze(0).numpy().copy()
        return Snapshot(position, tensors)


@torch.inference_mode()
def passages(
    decoder: Decoder, sequences: Sequence[Tokens], disturbances: Sequence[Tensor] = (), half: bool = False
) -> list[Passage]:
    """Send sequences through the model, all of a length in one call: padding costs what other rows do.

    A disturbance `[T, H]` is what a sequence's embedded tokens are multiplied by. `half`: see `_computed`.
    """
    found: dict[int, Passage] = {}
    for length in sorted(set(map(len, sequences))):
        places = [place for place, each in enumerate(sequences) if len(each) == length]
        factors = torch.stack([disturbances[place] for place in places]) if disturbances else None
        together = _side_by_side(decoder, [sequences[place] for place in places], factors, half)
        found |= zip(places, together, strict=True)
    return [found[place] for place in range(len(sequences))]


def _side_by_side(decoder: Decoder, sequences: Sequence[Tokens], factors: Tensor | None, half: bool) -> list[Passage]:
    """The passages of sequences of one length, in one call; factors `[sequences, T, H]`."""
    network = trace(decoder.config, padded=True)
    tokens = torch.tensor(sequences, device=decoder.device)
    embedded = decoder.embed_tokens(tokens)
    if factors is not None:
        embedded = embedded * factors.to(decoder.device)
    position = torch.zeros(len(tokens), dtype=torch.long, device=decoder.device)
    state = empty_state(decoder.config, 1, len(tokens), device=decoder.device)
    given = {STATE + name: tensor for name, tensor in state.items()}
    given |= {TOKENS: tokens, POSITION: position, LENGTH: position + tokens.shape[1], _lookup(network): embedded}
    (hidden,) = (step.inputs[0] for step in network.of_kind("last_valid"))
    sources = {name: _column_source(network, name) for name in network.state}
    found = _computed(network, decoder, given, [hidden, *sources.values()], half)
    columns = {name: found[value].cpu() for name, value in sources.items()}
    return [
        Passage(decoder, found[hidden][row], {name: each[row] for name, each in columns.items()})
        for row in range(len(tokens))
    ]


def steps_from(
    decoder: Decoder, tokens: Tokens, before: Sequence[Snapshot], disturbances: Sequence[Tensor], half: bool = False
) -> Iterator[Step]:
    """Take single steps side by side: of each token from its own state, its embedding times its `[1, H]`.

    `half`: see `_computed`.
    """
    network = trace(decoder.config, padded=True)
    columns = max(1, *(state.position for state in before))
    state = empty_state(decoder.config, columns, len(tokens), device=decoder.device)
    for row, snapshot in enumerate(before):
        for name, values in snapshot.tensors.items():
            target = state[name][row, :, : snapshot.position] if is_cache(name) else state[name][row]
            target.copy_(torch.from_numpy(values[0]))
    ids = torch.tensor(tokens, device=decoder.device).unsqueeze(1)
    position = torch.tensor([snapshot.position for snapshot in before], device=decoder.device)
    given = {STATE + name: tensor for name, tensor in state.items()}
    given |= {TOKENS: ids, POSITION: position, LENGTH: torch.ones_like(position)}
    given[_lookup(network)] = decoder.embed_tokens(ids) * torch.stack(list(disturbances)).to(decoder.device)
    computed = _computed(network, decoder, given, network.results, half)
    found = {name: value.cpu() for name, value in computed.items()}
    for row, (token, snapshot) in enumerate(zip(tokens, before, strict=True)):
        after = {
            name: np.concatenate((snapshot.tensors[name], new.numpy()), axis=2) if is_cache(name) else new.numpy()
            for name, value in network.state.items()
            for new in (found[value][row : row + 1],)
        }
        yield Step(token, snapshot, found[network.logits][row].numpy(), Snapshot(snapshot.position + 1, after))


def _computed(
    network: Network, decoder: Decoder, given: Mapping[str, Tensor], wanted: Sequence[str], half: bool
) -> dict[str, Tensor]:
    """Return the wanted values; with `half` every value on the way is rounded to fp16, as in a graph in fp16."""
    if not half:
        return interpret(network, decoder, given, wanted)
    known = dict(given)
    for step in network.steps:
        if any(output not in known for output in step.outputs) and known.keys() >= {*filter(None, step.inputs)}:
            made = interpret(network, decoder, known, [each for each in step.outputs if each not in known])
            known |= {name: value.half().float() for name, value in made.items()}
        if known.keys() >= {*wanted}:
            break
    return {name: known[name] for name in wanted}


def _lookup(network: Network) -> str:
    return next(network.of_kind("embedding")).output


def _column_source(network: Network, name: str) -> str:
    """The value that holds a column for each token: new keys and values themselves, or what becomes such a state."""
    if is_cache(name):
        return network.state[name]
    (reader,) = network.users(STATE + name)
    before = {"short_conv": 1, "sliding_attention": 2}[reader.kind]  # inputs between the two
    return reader.inputs[reader.inputs.index(STATE + name) - before]


def _shapes(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in empty_state(decoder.config, 1).items()}
