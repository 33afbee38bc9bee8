"""What onnxruntime computes in one operator, or more cheaply in another order: rewrites of the trace.

The kinds of step that they make: `linears` (several products of one input), `add_norm` (a norm and the sum before it),
`rotary_attention` (attention that turns queries and keys itself) and `rotary_of_rows` (angles for all other rotations).
"""

from __future__ import annotations

from collections.abc import Iterable

from lfm2_export.graph.passes import norm_before_pick
from lfm2_export.graph.steps import STATE, Network, Step


def fused(network: Network, modules: Iterable[str]) -> Network:
    """Return the network in the operators that the table has; `modules` are the model's, in the order declared."""
    summed = summed_in_norms(mixers_products_together(norm_before_pick(network), modules))
    return with_angles_for_rows(rotated_in_attention(summed))


def mixers_products_together(network: Network, modules: Iterable[str]) -> Network:
    """Make one step of the products of one input in a mixer, stacked in the order in which the model declares them.

    A mixer is what keeps a state. Elsewhere they stay apart: w1 and w3 as one product cost 3 % of a decode step more
    (350M, int4), for the split that follows.
    """
    mixers = {step.path for step in network.steps if any(value.startswith(STATE) for value in step.inputs)}
    together: dict[tuple[str, str], list[Step]] = {}
    for step in network.of_kind("linear"):
        if (within := step.path.rpartition(".")[0]) in mixers:
            together.setdefault((within, step.inputs[0]), []).append(step)
    declared = {path: number for number, path in enumerate(modules)}
    rewritten: dict[Step, tuple[Step, ...]] = {}
    for (within, x), steps in together.items():
        if len(steps) > 1:
            parts = sorted(steps, key=lambda step: declared[step.path])
            one = Step("linears", within, (x,), tuple(s.output for s in parts), tuple(s.path for s in parts))
            rewritten |= dict.fromkeys(steps, ()) | {steps[0]: (one,)}  # where the first was computed
    return network._replace(steps=tuple(new for step in network.steps for new in rewritten.get(step, (step,))))


def summed_in_norms(network: Network) -> Network:
    """Leave each sum to the norm that reads it first, which gives it out beside its own result."""
    steps: list[Step] = []
    for step in network.steps:
        made_by = network.maker(step.inputs[0]) if step.kind == "rms_norm" else None
        if made_by is None or made_by.kind != "add" or network.users(made_by.output)[0] != step:
            steps.append(step)
            continue
        steps.remove(made_by)
        steps.append(Step("add_norm", step.path, made_by.inputs, (step.output, made_by.output)))
    return network._replace(steps=tuple(steps))


def rotated_in_attention(network: Network) -> Network:
    """Leave RoPE to the attention operator, where queries and keys are turned by the same angles for it alone."""
    rewritten: dict[Step, tuple[Step, ...]] = {}
    for attention in network.of_kind("attention"):
        makers = [network.maker(value) for value in attention.inputs[:2]]
        rotations = [step for step in makers if step is not None and step.kind == "rotate"]
        alone = all(network.users(step.output) == (attention,) for step in rotations)
        if len(rotations) == 2 and alone and rotations[0].inputs[1:] == rotations[1].inputs[1:]:
            plain, angles = (step.inputs[0] for step in rotations), rotations[0].inputs[1:]
            inputs = (*plain, *attention.inputs[2:], *angles)
            rewritten |= dict.fromkeys(rotations, ())
            rewritten[attention] = (attention._replace(kind="rotary_attention", inputs=inputs),)
    return network._replace(steps=tuple(new for step in network.steps for new in rewritten.get(step, (step,))))


def with_angles_for_rows(network: Network) -> Network:
    """Give rotations that stay steps of their own the angles that they need: in the dtype of what they turn."""
    read = {value for step in network.of_kind("rotate") for value in step.inputs[1:]}
    steps = [
        step._replace(kind="rotary_of_rows") if step.kind == "rotary" and read & set(step.outputs) else step
        for step in network.steps
    ]
    return network._replace(steps=tuple(steps))
