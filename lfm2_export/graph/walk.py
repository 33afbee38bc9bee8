"""Going through a network step by step, whatever its values are: names in a file that is written, tensors, nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from lfm2_export.graph.steps import Network, Step

Value = TypeVar("Value")


def walk(
    network: Network, given: Mapping[str, Value], write: Callable[[Step, Sequence[Value]], Value | tuple[Value, ...]]
) -> dict[str, Value]:
    """Write every step and return what became of each of the network's values, by its name.

    `given` has those that come in, and under "" what stands for an absent one. `write` gets a step and its inputs and
    returns its output, or a tuple of as many as the step has.
    """
    known = dict(given)
    for step in network.steps:
        made = write(step, [known[value] for value in step.inputs])
        known.update(zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=True))
    return known


class Probe(NamedTuple):
    """An input or output of a module of the decoder, and the value of the network that it is."""

    path: str
    side: Literal["in", "out"]
    value: str


def probes(steps: Iterable[Step]) -> Iterator[Probe]:
    """Yield both sides of every norm and product, and what the lookup gives: all that has weights of its own."""
    for step in steps:
        if step.kind not in ("embedding", "linear", "rms_norm", "head_norm"):
            continue
        if step.kind != "embedding":  # tokens are no real numbers
            yield Probe(step.path, "in", step.inputs[0])
        yield Probe(step.path, "out", step.output)
