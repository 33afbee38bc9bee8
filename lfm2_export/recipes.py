"""Recipes: short YAML files that say what to make. Schema, loading by name or path, `--set` overrides.

Every error names the line of the file that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lfm2_export import strict_yaml
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import RecipeError, nearest, one_line
from lfm2_export.quantize.calibration import Calibration
from lfm2_export.quantize.method import CALIBRATED, Method
from lfm2_export.quantize.scheme import (
    Precision,
    QuantizationRule,
    WeightScheme,
    check_rules,
    has_integers,
    needs_calibration,
)

_PACKAGE = Path(__file__).parent
FOLDER = next(p for p in (_PACKAGE / "_recipes", _PACKAGE.parent / "recipes") if p.is_dir())
_YAML = strict_yaml.Kind("a recipe", RecipeError)
_LEAST_WINDOW = 32
_WINDOWS = 128  # of calibration text for weights
# the least limit of a median single step by the cache: kernels of 16-bit attention round more than the cache itself
# (ExecuTorch's in bfloat16 up to 9.5e-3 on nano, onnxruntime's in float16 8.6e-4)
_CACHE_STEP = {"float32": 0.0, "bfloat16": 0.03, "float16": 4e-3}


class LoweringGates(BaseModel):
    """Question 1, did lowering break it: the artifact against the same (quantized) model in eager PyTorch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_error: float = Field(gt=0)  # max |Δ| over logits and states, relative to the eager tensor's max |x|
    median_step: float | None = Field(default=None, gt=0)  # error of a single step, median; None: max_error
    top1: float = Field(default=1.0, ge=0, le=1)  # agreement on rows whose margin exceeds the error
    greedy: float = Field(default=1.0, ge=0, le=1)  # share of prompts whose greedy continuation is the same
    twin_step: float = Field(default=1e-5, gt=0)  # of the same program on two processors, median single step


class QualityGates(BaseModel):
    """Question 2, what did quantization cost: the artifact against fp32 eager, teacher-forced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean_kld: float = Field(gt=0)  # nats per token
    top1: float = Field(ge=0, le=1)  # agreement of the argmax
    task_drop: float = Field(default=0.02, ge=0, le=1)  # accuracy lost on nano's questions (nano only)
    vision_kld: float = Field(default=0.005, gt=0)  # what the image part's precision costs alone, nats per token


class Gates(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    lowering: LoweringGates
    quality: QualityGates

    def diverging(self, factor: float) -> Gates:
        """Return the same gates with `factor` times the mean divergence."""
        quality = self.quality.model_copy(update={"mean_kld": factor * self.quality.mean_kld})
        return self.model_copy(update={"quality": quality})


class Recipe(BaseModel):
    """One recipe. `options` belongs to the target, which checks it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    summary: str
    target: str
    parts: Literal["all", "text"] = "all"  # of a vision-language model: "text" is its decoder alone
    vision: Precision | None = None  # of its image part, as the target's capabilities say; None: the first of those
    form: Literal["explicit", "resident"] = "explicit"
    window: int = Field(default=2048, ge=_LEAST_WINDOW)  # tokens of KV cache
    cache: Literal["float32", "bfloat16", "float16"] = "float32"  # precision of the KV cache
    quantization: tuple[QuantizationRule, ...] = ()
    weights: Method = "nearest"  # how they come to their integers
    calibration: Calibration | None = None  # what static (int16) activations, and weights by "gptq" or "awq", see
    options: dict[str, Any] = {}
    gates: Gates

    @model_validator(mode="before")
    @classmethod
    def _calibration_by_default(cls, given: Any) -> Any:
        """`--set weights=gptq` is enough: such weights are calibrated on the defaults unless the recipe says more."""
        if isinstance(given, dict) and given.get("weights") in CALIBRATED and given.get("calibration") is None:
            return {**given, "calibration": Calibration(windows=_WINDOWS)}
        return given

    @property
    def judged_by(self) -> Gates:
        """Return the gates, that of a single step no tighter than the rounding of a 16-bit cache."""
        step = self.gates.lowering.median_step
        if step is None:
            return self.gates
        lowering = self.gates.lowering.model_copy(update={"median_step": max(step, _CACHE_STEP[self.cache])})
        return self.gates.model_copy(update={"lowering": lowering})

    @property
    def is_calibrated(self) -> bool:
        """Return whether weights are chosen with calibration tokens in view, and not from weights alone."""
        return self.weights in CALIBRATED and not needs_calibration(self.quantization)

    def within(self, config: LFM2Config) -> Recipe:
        """Return the recipe with no more window than the model has positions, but no less than any recipe has."""
        most = max(config.max_position_embeddings, _LEAST_WINDOW)
        return self.model_copy(update={"window": min(self.window, most)})

    def check(self, config: LFM2Config) -> None:
        """Refuse what cannot work for this model, before any weight is read."""
        if self.window > config.max_position_embeddings:
            raise RecipeError(
                f"{self.name}: window {self.window} exceeds the model's {config.max_position_embeddings} positions; "
                f"use --window {config.max_position_embeddings} or less"
            )
        check_rules(self.quantization, config)
        if self.weights != "nearest" and not has_integers(self.quantization):
            raise RecipeError(f"{self.name}: weights: {self.weights}: no rule has integer weights")
        if (needs_calibration(self.quantization) or self.is_calibrated) != (self.calibration is not None):
            unused = f"is for int16 activations, no rule has them, and for weights: {', '.join(CALIBRATED)}"
            why = unused if self.calibration else "is missing: int16 activations"
            raise RecipeError(f"{self.name}: calibration {why}")
        if self.calibration is not None and self.calibration.tokens > self.window:
            raise RecipeError(
                f"{self.name}: {self.calibration.tokens} tokens of calibration do not fit window {self.window}"
            )


_MODELS = (Recipe, Gates, LoweringGates, QualityGates, QuantizationRule, WeightScheme, Calibration)
_KEYS = {key for model in _MODELS for key in model.model_fields}


def names() -> list[str]:
    """Every built-in recipe, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name_or_path: str) -> Path:
    """The file of a built-in recipe, or the path itself."""
    return FOLDER / f"{name_or_path}.yaml" if name_or_path in names() else Path(name_or_path)


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a built-in recipe by name, or a file by path, and apply `key.path=value` overrides.

    Raises RecipeError, naming file and line, for anything that is not a valid recipe.
    """
    path = path_of(name_or_path)
    if not path.is_file():
        near = nearest(name_or_path, names())
        every = f"built-in ones: {', '.join(names())}; or give a path to a .yaml"
        raise RecipeError(f"no recipe {name_or_path!r}{near}; {every}")
    return parse(_YAML.file(path), str(path), overrides)


def asks_for_window(name_or_path: str, overrides: Sequence[str]) -> bool:
    """Return whether the user chose the window, by an override or in a recipe of their own."""
    return name_or_path not in names() or any(override.startswith("window=") for override in overrides)


def parse(data: bytes, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in these bytes; RecipeError, one line that begins with `where`, if they are none."""
    document = _YAML.mapping(data, where)
    for override in overrides:
        _override(document, override)
    return _YAML.validated(Recipe, document, where, _KEYS)


def _override(document: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all((*parents, last)):
        raise RecipeError(f"--set {override!r}: expected key.path=value")
    node = document
    for part in parents:
        node = _child(node, part, override)
    try:
        value = strict_yaml.read(text)
    except strict_yaml.UNREADABLE as error:
        raise RecipeError(f"--set {override!r}: {one_line(error)}") from error
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"--set {override!r}: {'.'.join(parents)} holds a single value")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise RecipeError(f"--set {override!r}: no such place in the recipe: {part!r}")
