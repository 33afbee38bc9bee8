"""Cutting a network into delegate calls: which steps a host computes, and which can be one call of a delegate."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from lfm2_export.graph.steps import Network, Step


class Call(NamedTuple):
    """Steps that one call of the delegate computes, and the values that go in and come out, in a fixed order."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut(network: Network, host: Collection[str]) -> list[Step | Call]:
    """Return the network as host steps (of the kinds in `host`) and calls, in an order in which they can be computed.

    A call takes every step that needs no host step behind those which the call before it waited for: there are as few
    calls as there are host steps in a row.
    """
    level: dict[str, int] = {}  # value → how many host steps lie one behind the other before it
    hosted: dict[int, list[Step]] = {}
    inside: dict[int, list[Step]] = {}
    for step in network.steps:
        deepest = max((level.get(value, 0) for value in step.inputs), default=0)
        on_host = step.kind in host
        at = deepest if on_host else max(deepest, 1)  # a call begins after what the host does first
        (hosted if on_host else inside).setdefault(at, []).append(step)
        for value in step.outputs:
            level[value] = at + 1 if on_host else at
    plan: list[Step | Call] = list(hosted.get(0, []))
    for at in sorted({*hosted, *inside} - {0}):
        if at in inside:
            plan.append(_call(network, inside[at]))
        plan += hosted.get(at, [])
    return plan


def _call(network: Network, steps: list[Step]) -> Call:
    made = {value for step in steps for value in step.outputs}
    read = dict.fromkeys(value for step in steps for value in step.inputs if value and value not in made)
    own = {id(step) for step in steps}
    wanted = {value for step in network.steps if id(step) not in own for value in step.inputs} | set(network.results)
    return Call(tuple(steps), tuple(read), tuple(v for step in steps for v in step.outputs if v in wanted))
