"""What a lowering is: (quantized traced model, recipe) → files. Each target is a subclass, in a folder of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from lfm2_export.artifact.manifest import MethodSpec, Npu
from lfm2_export.errors import RecipeError
from lfm2_export.graph.steps import Network
from lfm2_export.graph.trace import trace
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.progress import Progress
from lfm2_export.targets.capabilities import Capabilities
from lfm2_export.targets.refusals import refusals

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from lfm2_export.checkpoint.config import LFM2Config
    from lfm2_export.model.decoder import Decoder
    from lfm2_export.model.vision.encoder import VisionEncoder
    from lfm2_export.recipes import Recipe

Methods = Mapping[str, "GraphModule"]  # name → the method, of its input tensors


class Lowered(NamedTuple):
    """The result of a lowering, as the manifest records it."""

    methods: list[MethodSpec]
    transport: Literal["slice", "inplace"]
    cache_layout: Literal["heads-time", "time-heads"]
    versions: dict[str, str]
    runtime_requirement: str
    npu: Npu | None = None
    speculation: int = 0  # the most tokens of a call that verifies a draft


class Target(ABC):
    """One lowering: a table of how each kind of step is written, and what `export` and `parity` ask of it."""

    name: ClassVar[str]
    steps: ClassVar[Collection[str]]  # kinds of steps that its table has an entry for
    capabilities: ClassVar[Capabilities]  # what it can store and compute
    # whether another thread may run modules while it lowers: fx, when it traces, patches what calls them in the whole
    # process, so only a target that was tried says yes
    lowers_beside: ClassVar[bool] = False
    padded: ClassVar[bool]  # whether its methods take padded calls, and so lower the trace with `length`

    def network(self, config: LFM2Config) -> Network:
        """Return the steps that this target writes: the trace, after the target's own passes."""
        return trace(config, self.padded)

    def check(self, recipe: Recipe, config: LFM2Config) -> None:
        """Refuse what this target cannot do, before a weight is read. Raises RecipeError.

        Here: a model with a kind of step that the target has no entry for, and what its table of capabilities does not
        hold. Subclasses add what no table can say.
        """
        lacking = [step for kind, step in self.network(config).kinds().items() if kind not in self.steps]
        if lacking:
            named = ", ".join(f"{step.kind!r} (at {step.path or step.output})" for step in lacking)
            many = "s" if len(lacking) > 1 else ""
            known = self.capabilities.unwritten
            why = "".join(f"; {step.kind}: {known[step.kind]}" for step in lacking if step.kind in known)
            raise RecipeError(f"{recipe.name}: the {self.name} target cannot write the step{many} {named}{why}")
        for message in refusals(self.name, self.capabilities, recipe, config):
            raise RecipeError(message)

    def half(self, recipe: Recipe) -> bool:
        """Return whether every value between the steps is fp16 in what this target makes of a recipe."""
        return False

    @abstractmethod
    def lower(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write the artifact's files into `folder`, announcing each step through `progress("…")`.

        The checkpoint's config, tokenizer and template are there already, for a target to add what its runtimes look
        for in them. `sequences` are what static activations are calibrated on; empty when the recipe has none. The
        decoder is left as it is: a quick proof compares with it.

        Raises LoweringError when the result is not what the recipe demands.
        """

    def lower_with_images(
        self, decoder: Decoder, encoder: VisionEncoder, recipe: Recipe, folder: Path, progress: Progress
    ) -> Lowered:
        """Write a vision-language model: its decoder, which is given embeddings, what makes them of tokens, and what of
        images, whose matrices are in the recipe's precision already. Called only of a target whose capabilities have
        images, and that precision."""
        raise NotImplementedError(f"the {self.name} target writes no images")

    def lower_with_probes(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered | None:
        """Lower the explicit form once more, for `parity --trace`: its method also returns what goes in and comes out.

        An output `probe:<point>` for every module of the decoder that has weights (`point_name`). None where the target
        cannot: it is traced by its state.
        """
        return None

    def as_stored(self, decoder: Decoder, recipe: Recipe) -> Decoder:
        """Return the decoder whose matrices are those that the artifact stores, where the target itself rounds them."""
        return decoder

    def weights_error(self, decoder: Decoder, folder: Path) -> float | None:
        """Return the share of the stored weights that are not the decoder's; None where they are judged by running."""
        return None

    def reference(
        self, decoder: Decoder, recipe: Recipe, sequences: TokenSequences, probed: bool = False
    ) -> Methods | None:
        """Return the artifact's methods in eager PyTorch, where the target itself quantizes.

        When `probed` they are those of `lower_with_probes`, and the probes their last outputs. None where `decoder`
        already is the model that the artifact must equal.
        """
        return None
