"""The method's border: the caller's state as the operators want it, names, what calls hand over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lfm2_export.artifact.manifest import TensorSpec
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.cut import Call
from lfm2_export.graph.steps import STATE, Network, Step
from lfm2_export.model.state import State, is_cache, state_shapes


def native_shapes(config: LFM2Config, window: int) -> dict[str, tuple[int, ...]]:
    """The shape of every state tensor as the method takes it: caches `[kv_heads, S, 1, D]`, conv states `[1, L-1, H]`.

    D is the width of a head, S the window.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in state_shapes(config, window).items():
        if is_cache(name):
            _, heads, columns, width = shape
            shapes[name] = (heads, columns, 1, width)
        else:
            batch, hidden, columns = shape
            shapes[name] = (batch, columns, hidden)
    return shapes


def native_state(config: LFM2Config, window: int, cache: torch.dtype) -> State:
    """Zeros under the contract's names, in native shapes; caches of dtype `cache`, conv states fp32."""
    return {
        name: torch.zeros(shape, dtype=cache if is_cache(name) else torch.float32)
        for name, shape in native_shapes(config, window).items()
    }


def given(config: LFM2Config, embedded: bool) -> TensorSpec:
    """What a decoder reads: tokens, or their embeddings."""
    if embedded:
        return TensorSpec(name="embeddings", dtype="float32", shape=[1, "T", config.hidden_size])
    return TensorSpec(name="tokens", dtype="int64", shape=[1, "T"])


def inputs(first: TensorSpec, state: State, position: str, reads_convolutions: bool = False) -> list[TensorSpec]:
    """A method's inputs for the manifest: what it reads, position, then the caller's state, which the call changes.

    With `reads_convolutions` it changes the caches alone.
    """
    specs = [first, TensorSpec(name=position, dtype="int64", shape=[1])]
    for name, tensor in state.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        written = is_cache(name) or not reads_convolutions
        specs.append(TensorSpec(name=name, dtype=dtype, shape=list(tensor.shape), written=written))
    return specs


def columns(state: State) -> list[TensorSpec]:
    """What a convolution went over, `[1, L-1+T, H]`, in place of each new conv state."""
    shapes = {name: tensor.shape for name, tensor in state.items() if not is_cache(name)}
    return [
        TensorSpec(name=f"columns.{name}", dtype="float32", shape=[1, f"T+{kept}", hidden])
        for name, (_, kept, hidden) in shapes.items()
    ]


def runner_metadata(config: LFM2Config, window: int, limit: int) -> dict[str, Any]:
    """Constant methods of ExecuTorch's TextLLMRunner and LlmModule (extension/llm/runner/constants.h).

    `get_max_seq_len` is what the runner cuts prompts to, so it must equal the traced bound on T exactly.
    """
    return {
        "get_max_seq_len": limit,
        "get_max_context_len": window,
        "get_vocab_size": config.vocab_size,
        "get_bos_id": config.bos_token_id if config.bos_token_id is not None else 1,
        "get_eos_ids": list(config.eos_token_ids),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def ordered(network: Network, plan: Sequence[Step | Call]) -> list[Step | Call]:
    """Put what each call takes and returns in the order in which it is handed over.

    A call takes activations as they are made, then positions and angles, then states. It returns angles, then what the
    method itself reads, then what later calls alone read.
    """
    made = {value: number for number, value in enumerate(value for step in network.steps for value in step.outputs)}
    positions = {value for step in network.of_kind("offsets", "seen", "angles") for value in step.outputs}
    read_outside = {value for part in plan if isinstance(part, Step) for value in part.inputs}

    def taken(value: str) -> tuple[bool, bool, int]:
        return value.startswith(STATE), value in positions, made.get(value, 0)

    def returned(value: str) -> tuple[bool, bool]:
        return value not in positions, value not in read_outside

    return [
        part
        if isinstance(part, Step)
        else part._replace(
            inputs=tuple(sorted(part.inputs, key=taken)), outputs=tuple(sorted(part.outputs, key=returned))
        )
        for part in plan
    ]


def declared(call: Call) -> Iterator[str | Step]:
    """Yield a call's inputs and steps in the order in which a payload holds them: states behind the angles."""
    yield from (value for value in call.inputs if not value.startswith(STATE))
    yield from (step for step in call.steps if step.kind == "angles")
    yield from (value for value in call.inputs if value.startswith(STATE))
    yield from (step for step in call.steps if step.kind != "angles")
