"""Mixed precision by measurement: sensitivities → the best choice within a budget → a recipe that `export` takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from lfm2_export import recipes
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.files import marked, write_text
from lfm2_export.model.load import load_decoder
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize.calibration import Calibration, calibration_sequences
from lfm2_export.quantize.scheme import QuantizationRule
from lfm2_export.recipes import Recipe
from lfm2_export.tune.allocation import Allocation, cheapest, front
from lfm2_export.tune.choices import kept_bytes, named, units
from lfm2_export.tune.sensitivity import sensitivities, whole_cost

_HEADER = "# made by lfm2-export tune"
KIND = marked("tune", _HEADER.encode())


class Point(BaseModel):
    """One choice on the Pareto front."""

    stored_bytes: int  # of all matrices
    read_bytes: int  # of them, for every decoded token
    predicted_kld: float  # sum of the modules' own costs, nats per token
    options: dict[str, int]  # how many modules have which weights


class Tuning(BaseModel):
    """A search and its outcome."""

    checkpoint: str
    target: str
    text: str
    tokens: int
    modules: dict[str, dict[str, float]]  # path → option → KLD with that module alone quantized
    front: list[Point]
    chosen: Point
    measured_kld: float  # of the choice as a whole, rounded to nearest


def tune(
    checkpoint: Checkpoint,
    target: str,
    name: str,
    *,
    stored: float | None = None,
    read: float | None = None,
    kld: float | None = None,
    text: Calibration | None = None,
    progress: Progress = silent,
) -> tuple[Recipe, Tuning]:
    """The recipe `name` with the least KLD within so many `stored` or `read` bytes, or the smallest of at most `kld`.

    Exactly one of the three is given. Judged on `text`, by default the model's own replies, never on the text that
    parity judges by. Deterministic. Raises UsageError for a budget that nothing fits.
    """
    if sum(each is not None for each in (stored, read, kld)) != 1:
        raise UsageError("tune needs exactly one limit: --budget, --read-budget or --max-kld")
    found, kept = units(checkpoint.config, target), kept_bytes(checkpoint.config)
    progress("text to measure on")
    text = text or Calibration(windows=32)
    sequences = calibration_sequences(
        text, checkpoint, ChatTokenizer.load(checkpoint.folder, checkpoint.config), progress
    )
    exact = load_decoder(checkpoint)
    costs = sensitivities(exact, found, sequences, progress)
    bytes_stored = [[unit.stored(option) for option in unit.options] for unit in found]
    bytes_read = [[unit.read(option) for option in unit.options] for unit in found]
    progress("choosing")
    if kld is not None:
        weights, best = bytes_stored, _swapped(cheapest(bytes_stored, costs, kld))
    else:
        limits = (bytes_stored, stored), (bytes_read, read)
        weights, best = next((each, cheapest(costs, each, limit, kept)) for each, limit in limits if limit is not None)

    def point(choice: Allocation) -> Point:
        counts = Counter(named(unit.options[at]) for unit, at in zip(found, choice.chosen, strict=True))
        return Point(
            stored_bytes=kept + _sum(bytes_stored, choice),
            read_bytes=kept + _sum(bytes_read, choice),
            predicted_kld=choice.cost,
            options=dict(sorted(counts.items())),
        )

    progress("measuring the choice as a whole")
    options = [unit.options[at] for unit, at in zip(found, best.chosen, strict=True)]
    tuning = Tuning(
        checkpoint=checkpoint.name,
        target=target,
        text=text.source,
        tokens=sum(map(len, sequences)),
        modules={
            unit.paths[0]: {named(option): cost for option, cost in zip(unit.options, row, strict=True)}
            for unit, row in zip(found, costs, strict=True)
        },
        front=[point(each) for each in front(costs, weights)],
        chosen=point(best),
        measured_kld=whole_cost(exact, found, options, sequences),
    )
    rules = [rule for unit, option in zip(found, options, strict=True) for rule in unit.rules(option)]
    return _recipe(target, name, shortened(rules), tuning).within(checkpoint.config), tuning


def shortened(rules: Sequence[QuantizationRule]) -> tuple[QuantizationRule, ...]:
    """The same rules with the most frequent one said once, for every module that no other rule fits."""
    common, _ = Counter((each.weight, each.activation) for each in rules).most_common(1)[0]
    others = [each for each in rules if (each.weight, each.activation) != common]
    return (*others, QuantizationRule(match="*", weight=common[0], activation=common[1]))


def _recipe(target: str, name: str, rules: tuple[QuantizationRule, ...], tuning: Tuning) -> Recipe:
    base = recipes.load(f"{target}-int4")
    size = tuning.chosen.stored_bytes / 1e6
    summary = f"chosen by tune for {tuning.checkpoint}: {size:.1f} MB of weights, KLD {tuning.measured_kld:.2g}"
    return Recipe.model_validate(
        base.model_dump() | {"name": name, "summary": summary, "quantization": [each.model_dump() for each in rules]}
    )


def write_recipe(path: Path, recipe: Recipe, force: bool) -> None:
    """A YAML file that `export --recipe` takes. UsageError when the system refuses."""
    from io import StringIO

    from ruamel.yaml import YAML

    stream = StringIO()
    yaml = YAML()
    yaml.default_flow_style = None  # one line for each rule
    yaml.width = 120
    yaml.dump(recipe.model_dump(mode="json", exclude_defaults=True), stream)
    write_text(path, f"{_HEADER}\n{stream.getvalue()}", force, KIND)


def _sum(table: list[list[int]], choice: Allocation) -> int:
    return sum(row[at] for row, at in zip(table, choice.chosen, strict=True))


def _swapped(choice: Allocation) -> Allocation:
    """Cost and weight in their own places, after one was minimized under the other."""
    return Allocation(choice.chosen, choice.weight, choice.cost)
