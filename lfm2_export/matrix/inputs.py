"""What a cell is made from: where all of it is the same, a cell that stands is not done again."""

from __future__ import annotations

from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lfm2_export import recipes
from lfm2_export.artifact.manifest import Extent
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.files import sha256
from lfm2_export.matrix.plan import Cell, CheckpointEntry, Phone, Plan
from lfm2_export.model.load import open_checkpoint
from lfm2_export.recipes import Recipe

# what makes an artifact's bytes, and what runs it
_LIBRARIES = (
    *("lfm2-export", "torch", "torchao", "executorch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxruntime-qnn"),
    *("onnxruntime-genai", "onnxruntime-ep-webgpu", "coremltools", "peft", "transformers"),
)


class Inputs(BaseModel):
    """The digests and settings that a cell's artifact and its proof follow from."""

    name: str
    revision: str | None
    weights_sha256: str
    images_sha256: str | None  # of a vision-language model's image part
    adapter_sha256: str | None
    files: dict[str, str]  # what an artifact carries along → SHA-256
    recipe: dict[str, Any]  # in full
    calibration_sha256: str | None  # of the file that the recipe names
    effort: Extent
    details: bool
    runtimes: tuple[str, ...]
    phone: Phone | None
    versions: dict[str, str]

    def changed_from(self, other: Inputs | None) -> list[str]:
        """Return the names of what is not the same."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name, None)]


class Opened:
    """A checkpoint of the plan, opened; its weights are read for their digest at most once."""

    def __init__(self, entry: CheckpointEntry) -> None:
        """Raise what `open_checkpoint` raises."""
        self._checkpoint = open_checkpoint(entry.source, entry.revision, entry.base)

    @property
    def config(self) -> LFM2Config:
        return self._checkpoint.config

    def recipe(self, cell: Cell) -> Recipe:
        """Return the recipe as `export` takes it for this checkpoint."""
        recipe = cell.loaded
        return recipe if recipes.asks_for_window(cell.recipe.recipe, cell.overrides) else recipe.within(self.config)

    def inputs(self, cell: Cell, plan: Plan) -> Inputs:
        """Return what the cell is made from. Raises CheckpointError where weights cannot be read."""
        recipe = self.recipe(cell)
        text = Path(recipe.calibration.file) if recipe.calibration and recipe.calibration.file else None
        return Inputs(
            name=self._checkpoint.name,
            revision=self._checkpoint.revision,
            recipe=recipe.model_dump(mode="json"),
            calibration_sha256=sha256(text) if text and text.is_file() else None,
            effort=plan.effort,
            details=plan.details,
            runtimes=plan.runtimes,
            phone=plan.phone,
            versions=_versions(),
            **self._digests,
        )

    @cached_property
    def _digests(self) -> dict[str, Any]:
        checkpoint: Checkpoint = self._checkpoint
        return {
            "weights_sha256": checkpoint.digest(),
            "images_sha256": checkpoint.images_digest() if checkpoint.vision is not None else None,
            "adapter_sha256": checkpoint.adapter.weights_sha256 if checkpoint.adapter is not None else None,
            "files": {name: sha256(path) for name, path in sorted(checkpoint.companions().items())},
        }


def _versions() -> dict[str, str]:
    installed = {}
    for name in _LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
