"""checkpoint → model → quantize → target → artifact folder → proof. The whole story, top to bottom."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from lfm2_export import recipes, targets
from lfm2_export.artifact.folder import KIND, Artifact, open_artifact, seal, write_manifest
from lfm2_export.artifact.manifest import AdapterSource, Extent, Manifest, Source
from lfm2_export.checkpoint.config import to_dict
from lfm2_export.checkpoint.last_seen import remember
from lfm2_export.checkpoint.processor_keys import has_processor, read_processor
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.environment.resources import check_memory, torch_threads
from lfm2_export.errors import GateError, RecipeError
from lfm2_export.files import Need, cache_root, check_free, check_room, staged_folder
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.parity.beside import Beside
from lfm2_export.parity.detail import Detail
from lfm2_export.parity.report import ParityReport
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize import cache
from lfm2_export.quantize.apply import load_quantized
from lfm2_export.quantize.calibrated import load_calibrated
from lfm2_export.quantize.calibration import calibration_sequences, write_sequences
from lfm2_export.quantize.coverage import uncovered
from lfm2_export.quantize.freed_memory import return_at_once
from lfm2_export.quantize.images import describe_images, image_bytes, image_rules, load_quantized_encoder
from lfm2_export.quantize.record import FILE, Record, write_record
from lfm2_export.quantize.scheme import QuantizationRule, describe
from lfm2_export.quantize.size import model_bytes
from lfm2_export.recipes import Recipe


def export(
    source: str = "nano",
    recipe: str = "xnnpack-int8",
    output: Path | None = None,
    *,
    revision: str | None = None,
    base: str | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    verify: bool = True,
    effort: Extent = "full",
    progress: Progress = silent,
    detail: Detail | None = None,
) -> tuple[Artifact, ParityReport | None]:
    """Make an artifact folder and prove it.

    `source` is a checkpoint folder, a hub id, an embedded model or a LoRA adapter, which is merged onto `base` or
    the one it names; of a vision-language model the decoder alone, by the override `parts=text`. `recipe` is a name or
    a path, `overrides` its `key.path=value` changes (a window that neither they nor a recipe of your own asks for is at
    most the model's positions); `output` defaults to `out/<checkpoint>-<recipe>`. Without `verify` the manifest says
    that nothing was proven and the report is None. So it says where the artifact's own runtime does not run on this
    machine and a stand-in for it was asked instead: then the report has not `passed`, and says why in `unproven`. With
    `effort` "quick" less of the artifact is measured, and the manifest says so. `detail` is what a written report shows
    beyond the gates.

    Raises Lfm2ExportError; GateError when the proof fails. Whatever is raised, `output` is left as it was.
    """
    chosen = recipes.load(recipe, overrides)
    target = targets.find(chosen.target)
    progress("checking the checkpoint")
    checkpoint = open_checkpoint(source, revision, base)
    images = _takes_images(checkpoint, chosen)
    if images and checkpoint.vision is not None:
        chosen = _seeing(chosen, checkpoint.vision)
    if images and checkpoint.vision is not None and has_processor(checkpoint.folder):
        read_processor(checkpoint.folder, checkpoint.vision)  # which must fit
    if not recipes.asks_for_window(recipe, overrides):
        chosen = chosen.within(checkpoint.config)
    chosen.check(checkpoint.config)
    target.check(chosen, checkpoint.config)
    output = output or Path("out") / f"{Path(checkpoint.name).name}-{chosen.name}"
    check_free(output, force, KIND, [checkpoint.place])
    check_room(*_needs(output, checkpoint, chosen))
    if verify:
        check_memory(checkpoint.config, chosen.quantization)
    tokenizer = ChatTokenizer.load(checkpoint.folder, checkpoint.config)
    with torch_threads(checkpoint.config), staged_folder(output, force, KIND, [checkpoint.place]) as folder:
        checkpoint.copy_companions(folder, images)
        sequences: TokenSequences = ()
        if chosen.calibration is not None:
            progress(f"choosing calibration tokens ({chosen.calibration.source})")
            sequences = calibration_sequences(chosen.calibration, checkpoint, tokenizer, progress)
            write_sequences(folder, sequences)
        progress("reading and quantizing weights")
        return_at_once()
        decoder, record = _quantized(checkpoint, chosen, sequences, folder, progress)
        beside = verify and target.lowers_beside
        with _read_ahead(checkpoint, chosen, tokenizer, effort, detail) if beside else nullcontext() as ahead:
            if images:
                encoder = load_quantized_encoder(checkpoint, _image_rule(chosen))
                lowered = target.lower_with_images(decoder, encoder, chosen, folder, progress)
                del encoder
            else:
                lowered = target.lower(decoder, chosen, folder, progress, sequences)
            lowered_from = [decoder] if verify and effort == "quick" else []  # a full proof makes its own
            del decoder
            gc.collect()  # what a lowering builds holds on to weights in circles
            progress("checksums")
            manifest = Manifest(
                files=seal(folder),
                source=_source(checkpoint, images),
                recipe=chosen.model_dump(mode="json"),
                target=chosen.target,
                form=chosen.form,
                window=chosen.window,
                quantization=_described(checkpoint, chosen, record, images),
                chat=tokenizer is not None and tokenizer.has_template,
                **lowered._asdict(),
            )
            write_manifest(folder, manifest)
            report = None
            if verify:
                model = lowered_from.pop if lowered_from else None
                report = _prove(folder, output.name, manifest, checkpoint, effort, progress, detail, ahead, model)
    if chosen.is_calibrated:
        shutil.rmtree(_kept(checkpoint, chosen, sequences), ignore_errors=True)
    if checkpoint.is_local:
        remember(manifest.source.weights_sha256, checkpoint.place, base)
    return Artifact(output, open_artifact(output).manifest), report


def _needs(output: Path, checkpoint: Checkpoint, recipe: Recipe) -> list[Need]:
    """What will be written, counted low: matrices in the recipe's bits, and for calibrated ones the record of them."""
    size = model_bytes(checkpoint.config, recipe.quantization)
    if checkpoint.vision is not None and recipe.parts == "all":
        size += image_bytes(checkpoint.vision, _image_rule(recipe))
    if not recipe.is_calibrated:
        return [Need(output.parent, size, "the artifact's weights")]
    return [
        Need(output.parent, 2 * size, "the artifact's weights with their record"),
        Need(cache_root(), size, "the finished layers (LFM2_EXPORT_CACHE)"),
    ]


def _quantized(
    checkpoint: Checkpoint, recipe: Recipe, sequences: TokenSequences, folder: Path, progress: Progress
) -> tuple[Decoder, Record]:
    """The decoder, and what calibration decided, which goes into the folder as well."""
    rules = recipe.quantization
    if not recipe.is_calibrated:  # for static activations the target chooses the weights' integers too
        return load_quantized(checkpoint, rules, recipe.cache, recipe.weights), {}
    kept = _kept(checkpoint, recipe, sequences)
    decoder, record = load_calibrated(checkpoint, rules, recipe.cache, recipe.weights, sequences, progress, kept)
    write_record(folder / FILE, record)
    return decoder, record


def _described(checkpoint: Checkpoint, recipe: Recipe, record: Record, images: bool) -> dict[str, str]:
    """How matrices are quantized, by class; experts that calibration showed too little are named."""
    found = describe(recipe.quantization, checkpoint.config)
    if few := uncovered(record, checkpoint.config):
        found["expert by mse"] = few
    if images and checkpoint.vision is not None:
        found["vision"] = describe_images(checkpoint.vision, _image_rule(recipe))
    return found


def _image_rule(recipe: Recipe) -> QuantizationRule | None:
    return targets.capabilities(recipe.target).image_rule(recipe)


def _kept(checkpoint: Checkpoint, recipe: Recipe, sequences: TokenSequences) -> Path:
    return cache.folder_for(checkpoint, recipe.quantization, recipe.weights, sequences)


def _read_ahead(
    checkpoint: Checkpoint, recipe: Recipe, tokenizer: ChatTokenizer | None, effort: Extent, detail: Detail | None
) -> Beside:
    from lfm2_export.parity.fp32 import read_ahead  # opens the runtimes as well

    return read_ahead(checkpoint, recipe, tokenizer, effort, detail is not None)


def _prove(
    folder: Path,
    name: str,
    manifest: Manifest,
    checkpoint: Checkpoint,
    effort: Extent,
    progress: Progress,
    detail: Detail | None,
    ahead: Beside | None,
    lowered: Callable[[], Decoder] | None,
) -> ParityReport:
    from lfm2_export.parity.prove import prove  # opens the runtimes: not needed to lower

    report = prove(
        open_artifact(folder), checkpoint, effort=effort, progress=progress, detail=detail, ahead=ahead, lowered=lowered
    )
    report.artifact = name  # not the temporary one it still has
    write_manifest(
        folder, manifest.model_copy(update={"parity": report.gates, "effort": effort, "unproven": report.unproven})
    )
    if not report.passed and report.unproven is None:
        raise ParityError(report)
    return report


class ParityError(GateError):
    """The artifact was made but not proven; `report` says where it failed."""

    def __init__(self, report: ParityReport) -> None:
        failed = [gate for gate in report.gates if gate.status == "fail"]
        if failed:
            first = failed[0]
            why = f"{first.runtime}: {first.name} is {first.value}, the limit is {first.limit}"
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        else:
            skipped = "; ".join(f"{runtime.runtime}: {runtime.reason}" for runtime in report.runtimes)
            why, more = f"no runtime could prove it ({skipped})", ""
        super().__init__(f"parity failed, nothing was written: {why}{more}")
        self.report = report


def _takes_images(checkpoint: Checkpoint, recipe: Recipe) -> bool:
    """Whether the image part of a model is exported as well: a decoder goes alone only where that was meant.

    Raises RecipeError where the target cannot write it.
    """
    if checkpoint.vision is None or recipe.parts == "text":
        return False
    what = f"{recipe.name}: {checkpoint.name} is a vision-language model ({checkpoint.vision.model_type})"
    able = targets.with_images(checkpoint.vision.model_type)
    if recipe.target not in able:
        raise RecipeError(
            f"{what}, and the {recipe.target} target does not write its image part (these do: {', '.join(able)}); "
            f"--set parts=text exports its text decoder alone"
        )
    if targets.find(recipe.target).half(recipe):
        raise RecipeError(
            f"{what}, whose image part computes in fp32; --set parts=text exports its text decoder alone in fp16"
        )
    return True


def _seeing(recipe: Recipe, vision: VisionConfig) -> Recipe:
    """The recipe with the precision of its image part. Raises RecipeError where the target or the shape lacks it."""
    has = targets.capabilities(recipe.target).vision
    precision = next(iter(has)) if recipe.vision is None else recipe.vision
    if precision not in has:
        raise RecipeError(f"{recipe.name}: vision: {precision}; the {recipe.target} target has {' or '.join(has)}")
    image_rules(vision, has[precision])
    return recipe.model_copy(update={"vision": precision})


def _source(checkpoint: Checkpoint, images: bool) -> Source:
    return Source(
        name=checkpoint.name,
        revision=checkpoint.revision,
        weights_sha256=checkpoint.digest(),
        images_sha256=checkpoint.images_digest() if images else None,
        random_weights=checkpoint.random_weights,
        config=to_dict(checkpoint.config),
        adapter=_adapter(checkpoint),
    )


def _adapter(checkpoint: Checkpoint) -> AdapterSource | None:
    if (merged := checkpoint.adapter) is None:
        return None
    return AdapterSource(
        weights_sha256=merged.weights_sha256,
        base=merged.base,
        base_revision=merged.base_revision,
        base_sha256=merged.base_sha256,
    )
