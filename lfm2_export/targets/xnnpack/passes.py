"""The trace as XNNPACK takes it: operators in their halves, inside and outside the delegate, and heads set apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from torch import Tensor

from lfm2_export.graph.passes import bypassed, without_dead_steps
from lfm2_export.graph.steps import POSITION, TOKENS, Network, Step
from lfm2_export.model.decoder import Decoder
from lfm2_export.quantize.apply import quantized_weight

START, OFFSETS, SEEN = "start", "offsets", "seen"  # where a call stands: its first position, in two types, and tokens
EMBEDDINGS = "embeddings"  # what a decoder without a lookup is given, `[1, T, H]`
_LAST = ("last_columns", "last_row", "without_time")  # what a call keeps of its tokens: without them it shows all
_POSITIONS = (
    Step("start", "", (POSITION,), (START,)),
    Step("offsets", "", (TOKENS,), (OFFSETS,)),
    Step("seen", "", (POSITION,), (SEEN,)),
)


class Given(NamedTuple):
    """The needs of passes beyond the trace: weights, and the shape of each state tensor as the method takes it."""

    decoder: Decoder
    states: Mapping[str, tuple[int, ...]]


def arranged(given: Given, network: Network) -> Network:
    """Order a network whose operators are in their halves as the method computes it."""
    return with_heads_apart(given, after_positions(without_written_state(network)))


def of_every_row(network: Network) -> Network:
    """Show what `last_columns` and the last row are taken from: a call that verifies drafts."""
    return bypassed(network, _LAST)


def of_embeddings(network: Network) -> Network:
    """Begin with embeddings, which then tell how many tokens a call has: nothing is looked up."""
    looked_up = tuple(network.of_kind("lookup", "swap_pairs"))
    instead = dict.fromkeys((TOKENS, *(value for step in looked_up for value in step.outputs)), EMBEDDINGS)
    steps = (step for step in network.steps if step not in looked_up)
    return network._replace(
        steps=tuple(step._replace(inputs=tuple(instead.get(value, value) for value in step.inputs)) for step in steps)
    )


def lookup(given: Given, step: Step) -> Sequence[Step]:
    """`embedding` → the lookup, and for an int4 table the delegate's part of it (see `embedding.NibbleEmbedding`)."""
    weight = quantized_weight(given.decoder.get_submodule(step.path))
    if weight is None or weight.bits == 8:
        return (step._replace(kind="lookup"),)
    swapped = f"{step.output}/swapped"
    return (
        step._replace(kind="lookup", outputs=(swapped,)),
        Step("swap_pairs", "", (swapped,), step.outputs),
    )


def angles(given: Given, step: Step) -> Sequence[Step]:
    """`rotary` → the angles, from the call's positions in fp32."""
    return (step._replace(kind="angles", inputs=(OFFSETS, SEEN)),)


def attention(given: Given, step: Step) -> Sequence[Step]:
    """`attention` → its operands by head, the operator, which writes the caches itself, and its result by row."""
    query, key, value, past_key, past_value, _ = step.inputs
    kv_heads, _, _, width = given.states[past_key]
    by_head = [
        Step("by_head", step.path, (x,), (f"{step.output}/{name}",), (kv_heads, width))
        for name, x in (("query", query), ("key", key), ("value", value))
    ]
    mixed = f"{step.output}/by_head"
    operands = (*(half.output for half in by_head), past_key, past_value, START)
    return (
        *by_head,
        Step("attend", step.path, operands, (mixed,)),
        Step("by_row", step.path, (mixed,), step.outputs[:1]),
    )


def short_conv(given: Given, step: Step) -> Sequence[Step]:
    """`short_conv` → the convolution, and the end of its columns, which is the new state."""
    gated, state, *_ = step.inputs
    mixed, new = step.outputs
    columns, kept = f"{mixed}/columns", given.states[state][1]
    return (
        Step("convolve", step.path, (gated, state), (mixed, columns)),
        Step("last_columns", step.path, (columns, TOKENS), (new,), (kept,)),
    )


def sliding_attention(given: Given, step: Step) -> Sequence[Step]:
    """`sliding_attention` → the attention, and the ends of its keys and values, which are the new state."""
    *operands, past_key, past_value, _, _ = step.inputs
    mixed, *new = step.outputs
    (width,) = step.arguments
    _, kept, channels = given.states[past_key]
    columns = [f"{mixed}/{name}" for name in ("keys", "values")]
    inputs = (*operands, past_key, past_value, OFFSETS, SEEN)
    arguments = (channels // cast(int, width), width)
    ends = zip(columns, new, strict=True)
    return (
        Step("sliding_attend", step.path, inputs, (mixed, *columns), arguments),
        *(Step("last_columns", step.path, (whole, TOKENS), (end,), (kept,)) for whole, end in ends),
    )


def last_valid(given: Given, step: Step) -> Sequence[Step]:
    """`last_valid`, of calls without padding → the last row, outside the delegate, which does not know T."""
    row = f"{step.output}/row"
    return (
        Step("last_row", "", step.inputs[:1], (row,)),
        Step("without_time", "", (row,), step.outputs),
    )


def after_positions(network: Network) -> Network:
    """Look tokens up first, then count positions, where any step reads them."""
    lookups = tuple(network.of_kind("lookup"))
    others = tuple(step for step in network.steps if step.kind != "lookup")
    return without_dead_steps(network._replace(steps=(*lookups, *_POSITIONS, *others)))


def without_written_state(network: Network) -> Network:
    """Leave out the new state that no step makes: caches are written in place."""
    made = {value for step in network.steps for value in step.outputs}
    return network._replace(state={name: value for name, value in network.state.items() if value in made})


def with_heads_apart(given: Given, network: Network) -> Network:
    """Give heads an axis of their own wherever a step works head by head, right behind the step that made the value."""
    widths: dict[str, int] = {}  # value whose heads have an axis of their own → the width of each
    views: dict[str, dict[int | None, Step]] = {}  # value → width, or None for rows → the step that shows it so
    steps: list[Step] = []
    for step in network.steps:
        wanted = _head_width(given, network, step)
        inputs = list(step.inputs)
        for number, value in enumerate(step.inputs):
            width = widths.get(value)
            if (wanted is None or number == 0) and width != wanted:
                view = views.setdefault(value, {}).setdefault(wanted, _view(value, wanted))
                inputs[number] = view.output
        if wanted is not None and step.kind != "by_head":
            widths[step.output] = wanted
        steps.append(step._replace(inputs=tuple(inputs)))
    return network._replace(steps=tuple(_with_views(steps, views)))


def _head_width(given: Given, network: Network, step: Step) -> int | None:
    """The width of the heads that a step reads its first input in; None for a step that works on rows."""
    if step.kind == "head_norm":
        return cast(Tensor, given.decoder.get_submodule(step.path).weight).shape[0]
    if step.kind == "rotate":
        angles = network.maker(step.inputs[1])
        assert angles is not None
        return cast(int, angles.arguments[0])
    if step.kind == "by_head":
        return cast(int, step.arguments[1])
    return None


def _view(value: str, width: int | None) -> Step:
    if width is None:
        return Step("rows", "", (value,), (f"{value}/rows",))
    return Step("heads", "", (value,), (f"{value}/heads_{width}",), (width,))


def _with_views(steps: Sequence[Step], views: Mapping[str, Mapping[int | None, Step]]) -> Iterator[Step]:
    for step in steps:
        yield step
        for value in step.outputs:
            yield from views.get(value, {}).values()
