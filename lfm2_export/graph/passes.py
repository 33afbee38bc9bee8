"""Rewrites of a network that know no target. Each takes a network and returns another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from lfm2_export.graph.steps import Network, Step

Rewrite = Callable[[Step], Sequence[Step]]


def without_dead_steps(network: Network) -> Network:
    """Leave out what no result needs: the angles of a network without attention, say."""
    needed = set(network.results)
    kept: list[Step] = []
    for step in reversed(network.steps):
        if needed & set(step.outputs):
            kept.append(step)
            needed |= set(step.inputs)
    return network._replace(steps=tuple(reversed(kept)))


def expanded(network: Network, rewrites: Mapping[str, Rewrite]) -> Network:
    """Replace every step of a kind by what its rewrite makes of it, in its place."""
    steps = [new for step in network.steps for new in (rewrites[step.kind](step) if step.kind in rewrites else (step,))]
    return network._replace(steps=tuple(steps))


def bypassed(network: Network, kinds: Collection[str]) -> Network:
    """Leave out the steps of these kinds: whoever read what one of them made reads its first input instead."""
    instead: dict[str, str] = {}
    steps: list[Step] = []
    for step in network.steps:
        inputs = tuple(instead.get(value, value) for value in step.inputs)
        if step.kind in kinds:
            instead[step.output] = inputs[0]
        else:
            steps.append(step._replace(inputs=inputs))
    state = {name: instead.get(value, value) for name, value in network.state.items()}
    return Network(tuple(steps), instead.get(network.logits, network.logits), state)


def norm_before_pick(network: Network) -> Network:
    """`norm(last_valid(x))` → `last_valid(norm(x))`: the same rows, and the norm can fuse with the sum before it."""
    steps = list(network.steps)
    for at, pick in enumerate(network.steps):
        after = next((n for n, step in enumerate(network.steps) if step.inputs[:1] == pick.outputs), None)
        if pick.kind == "last_valid" and after is not None and network.steps[after].kind == "rms_norm":
            norm, rows = network.steps[after], f"{network.steps[after].output}/rows"
            steps[at] = norm._replace(inputs=pick.inputs[:1], outputs=(rows,))
            steps[after] = pick._replace(inputs=(rows, *pick.inputs[1:]), outputs=norm.outputs)
    return network._replace(steps=tuple(steps))
