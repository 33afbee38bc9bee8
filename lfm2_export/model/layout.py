"""What a checkpoint stores of the model, tensor by tensor, and which parameters it becomes (Hugging Face's naming)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

Shape = tuple[int, ...]


class Stored(NamedTuple):
    """A tensor of a checkpoint, and the parameters that become of it; both by their names within the module."""

    name: str
    shape: Shape
    parameters: tuple[str, ...]
    parts: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: (tensor,)  # one for each parameter


class StoresOtherwise(ABC):
    """A module whose tensors in a checkpoint are not its own and its children's parameters one by one."""

    @abstractmethod
    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield what a checkpoint holds, in its order.

        When `unsaved`, under the names and in the shapes that transformers has in memory, where it saves others.
        """


def stored(module: nn.Module, unsaved: bool) -> Iterator[Stored]:
    """Yield what a checkpoint holds of a module, in its order: the module's own word, or its parameters by name."""
    if isinstance(module, StoresOtherwise):
        yield from module.stored(unsaved)
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield Stored(name, tuple(parameter.shape), (name,))
    for prefix, child in module.named_children():
        for each in stored(child, unsaved):
            yield within(prefix, each)


def within(prefix: str, each: Stored) -> Stored:
    """The same under the names that the module `prefix` belongs to gives it."""
    return each._replace(name=f"{prefix}.{each.name}", parameters=tuple(f"{prefix}.{name}" for name in each.parameters))
