"""The trace: the network as a flat list of whole operators, which targets walk and passes rewrite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

STATE = "state."  # what begins the name of a state tensor that comes in: `state.key.2`
TOKENS, POSITION, LENGTH = "tokens", "position", "length"  # the other values that come in
PATCHES, GRID = "patches", "grid"  # those that come into the image part


class Step(NamedTuple):
    """One operator of the network.

    A kind is `embedding`, `linear`, `add`, `mul`, `silu`, the name of an operator in `model/operators.py`, or one that
    a target's own passes put in its place; of an image part also `layer_norm`, `gelu`, and those of
    `model/vision/grid.py`. Values are known by name; "" stands for an optional input that is absent.
    """

    kind: str
    path: str  # of the module whose weights it uses, or, where it has none, in which it is computed
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: tuple[object, ...] = ()  # what is no tensor, in the operator's order: an epsilon, a width

    @property
    def output(self) -> str:
        """The name of its only, or first, output."""
        return self.outputs[0]


class Network(NamedTuple):
    """A whole network: its steps in an order in which they can be computed, and which values are its results."""

    steps: tuple[Step, ...]
    logits: str  # of an image part, which has no state: the embeddings
    state: dict[str, str]  # the contract's name → its new value, in the contract's order

    @property
    def results(self) -> tuple[str, ...]:
        """The values that a call is made for: the logits, then the new state."""
        return (self.logits, *self.state.values())

    def users(self, value: str) -> tuple[Step, ...]:
        """The steps that read a value."""
        return tuple(step for step in self.steps if value in step.inputs)

    def maker(self, value: str) -> Step | None:
        """The step that makes a value; None for one that comes in."""
        return next((step for step in self.steps if value in step.outputs), None)

    def kinds(self) -> dict[str, Step]:
        """Every kind of step, with the first of it."""
        found: dict[str, Step] = {}
        for step in self.steps:
            found.setdefault(step.kind, step)
        return found

    def of_kind(self, *kinds: str) -> Iterator[Step]:
        """The steps of these kinds, in order."""
        return (step for step in self.steps if step.kind in kinds)


def layer_of(path: str) -> int | None:
    """The layer that a module's path lies in; None for the embedding, the final norm and the head."""
    head, _, rest = path.partition(".")
    return int(rest.partition(".")[0]) if head == "layers" else None
