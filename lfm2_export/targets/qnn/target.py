"""ExecuTorch `.pte` for Qualcomm's NPU (HTP): one method for a token, one for a chunk, over the caller's state.

Everything runs on the NPU; a node that does not fails the export unless the recipe's options allow it. The file for
the phone stores weights that both methods use once. The emulator, on which an artifact is proven, cannot load such a
file, so a second one is compiled for it from the same networks (`emulator.pte`); an app needs only `model.pte`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch.fx import GraphModule

from lfm2_export.artifact.manifest import Delegation, Npu
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import LoweringError, RecipeError
from lfm2_export.graph.matrices import matrices
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.progress import Progress, silent
from lfm2_export.qualcomm import sdk
from lfm2_export.qualcomm import soc as chips
from lfm2_export.quantize.scheme import needs_calibration, rule_for
from lfm2_export.quantize.static_weights import static_weights
from lfm2_export.recipes import Recipe
from lfm2_export.static_calls import PREFILL
from lfm2_export.targets._compiling import no_collection, quiet, swept_temporaries
from lfm2_export.targets.qnn.capabilities import CAPABILITIES
from lfm2_export.targets.qnn.capacity import first_layers, shards_needed
from lfm2_export.targets.qnn.table import TABLE
from lfm2_export.targets.static_border import FILE, example, method_spec, probed_values, rows_of
from lfm2_export.targets.static_module import StaticModule
from lfm2_export.targets.target import Lowered, Methods, Target

EMULATOR_FILE = "emulator.pte"


class QnnTarget(Target):
    """Qualcomm's NPU through ExecuTorch."""

    name = "qnn"
    steps = TABLE
    capabilities = CAPABILITIES
    padded = True

    def check(self, recipe: Recipe, config: LFM2Config) -> None:
        """Refuse what this target cannot do, and say so when Qualcomm's libraries are missing."""
        super().check(recipe, config)
        attends = not self.network(config).kinds().keys().isdisjoint(("attention", "sliding_attention"))
        _check_chip(recipe, config, chips.named(CAPABILITIES.option(recipe, "soc")), attends)
        sdk.version()

    def half(self, recipe: Recipe) -> bool:
        return not needs_calibration(recipe.quantization)

    def lower(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write `model.pte`, and `emulator.pte` where the first cannot run on the emulator."""
        return self._lower(decoder, recipe, folder, progress, sequences, probed=False)

    def lower_with_probes(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write a `model.pte` for the emulator whose methods also return what goes into and comes out of every module.

        With integers that changes no scale, and no bit of the other results. In fp16 the compiler fuses other operators
        then, so results differ by its rounding.
        """
        return self._lower(decoder, recipe, folder, progress, sequences, probed=True)

    def _lower(
        self,
        decoder: Decoder,
        recipe: Recipe,
        folder: Path,
        progress: Progress,
        sequences: TokenSequences,
        probed: bool,
    ) -> Lowered:
        config, soc, rows = decoder.config, chips.named(CAPABILITIES.option(recipe, "soc")), _rows(recipe)
        half = not needs_calibration(recipe.quantization)
        grouped = any(rule.weight is not None and rule.weight.group is not None for rule in recipe.quantization)
        programs = self._programs(decoder, recipe, sequences, progress, probed)
        shared = bool(CAPABILITIES.option(recipe, "weight_sharing")) and soc.shares_weights and not probed
        files = {FILE: shared} | ({EMULATOR_FILE: False} if shared else {})
        from lfm2_export.targets.qnn.compile import compiled

        # counted for the file that stores weights twice: what is proven on the emulator has the phone's cuts
        shards = CAPABILITIES.option(recipe, "shards") or shards_needed(config, recipe, copies=2)
        starts = first_layers(config.num_hidden_layers, shards)
        examples = {name: example(config, recipe.window, count) for name, count in rows.items()}
        with quiet(), no_collection(), swept_temporaries(), torch.no_grad():
            for name, share in files.items():
                progress(f"compiling {name} for {soc.name}" + (" (weights stored once)" if share else ""))
                reports = compiled(
                    programs, examples, soc, folder / name, half=half, share=share, grouped=grouped, starts=starts
                )
                _refuse_fallback(reports, recipe)
        points = probed_values(self.network(config)) if probed else ()
        return Lowered(
            methods=[
                method_spec(name, count, config, recipe.window, reports[name], points) for name, count in rows.items()
            ],
            transport="slice",
            cache_layout="heads-time",
            versions={name: version(name) for name in ("executorch", "torch", "torchao")} | {"qnn": sdk.version()},
            runtime_requirement=f"executorch=={version('executorch')} with the QNN backend",
            npu=Npu(
                soc=soc.name,
                htp=soc.generation,
                shards=shards,
                weights_shared=shared,
                emulator_file=list(files)[-1],
            ),
        )

    def reference(
        self, decoder: Decoder, recipe: Recipe, sequences: TokenSequences, probed: bool = False
    ) -> Methods | None:
        """Return the same quantized model in eager PyTorch, by method; None in fp16, where that is the decoder."""
        if not needs_calibration(recipe.quantization):
            return None
        return self._programs(decoder, recipe, sequences, silent, probed)

    def _programs(
        self, decoder: Decoder, recipe: Recipe, sequences: TokenSequences, progress: Progress, probed: bool = False
    ) -> Mapping[str, GraphModule]:
        """The methods in aten operators, with every scale chosen where the recipe has any."""
        sdk.prepare()
        if recipe.calibration is None:
            progress("writing the network as the NPU takes it")
            with quiet():
                return self._exported(decoder, recipe, probed)
        progress(f"choosing the weights' scales ({recipe.weights})")
        rounded = static_weights(decoder, recipe.quantization, sequences, recipe.weights)
        progress(f"calibrating on {sum(map(len, sequences))} tokens")
        with quiet():
            from lfm2_export.targets.qnn.pt2e import quantized

            programs = self._exported(rounded.decoder, recipe, probed)
            soc = chips.named(CAPABILITIES.option(recipe, "soc"))
            return quantized(programs, rounded.scales, decoder.config, recipe, soc, sequences, _rows(recipe)[PREFILL])

    def _exported(self, decoder: Decoder, recipe: Recipe, probed: bool) -> dict[str, GraphModule]:
        config, network, window = decoder.config, self.network(decoder.config), recipe.window
        further = probed_values(network).values() if probed else ()
        return {
            name: StaticModule(TABLE, network, decoder, window, rows, further)
            .exported(example(config, window, rows))
            .module()
            for name, rows in _rows(recipe).items()
        }


TARGET = QnnTarget()


def _rows(recipe: Recipe) -> dict[str, int]:
    return rows_of(CAPABILITIES.option(recipe, "prefill_chunk"))


def _refuse_fallback(reports: Mapping[str, Delegation], recipe: Recipe) -> None:
    left = {f"{name} × {count}" for report in reports.values() for name, count in report.fallback.items()}
    if left and not CAPABILITIES.option(recipe, "allow_fallback"):
        raise LoweringError(f"outside the NPU: {', '.join(sorted(left))}; --allow-fallback accepts that")


def _check_chip(recipe: Recipe, config: LFM2Config, soc: chips.Soc, attends: bool) -> None:
    """Refuse weights and arithmetic that this chip's generation lacks."""
    half = not needs_calibration(recipe.quantization)
    for path, kind, _ in () if half else matrices(config):
        rule = rule_for(path, kind, recipe.quantization)
        if kind == "embedding" or rule is None or rule.weight is None:
            continue
        what, since = ("groups of weights (LPBQ)", 69) if rule.weight.group else ("16-bit weights", 73)
        if soc.generation < since and (rule.weight.group or rule.weight.bits == 16):
            raise RecipeError(f"{recipe.name}: {path}: {what} need HTP v{since}, {soc.name} has v{soc.generation}")
    lacking = soc.lacks(half, attends)
    if lacking is not None:
        raise RecipeError(f"{recipe.name}: {soc.name} (HTP v{soc.generation}) has no {lacking}")
