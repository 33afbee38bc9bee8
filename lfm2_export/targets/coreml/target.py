"""ExecuTorch `.pte` for Apple's processors, through Core ML: one method for a token, one for a chunk of them.

Lowered anywhere, and run on Apple's systems alone. Each method is one call into Core ML and nothing else; what Core ML
does not take fails the export. Methods of one program share their weights, which needs iOS 18 or macOS 15.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lfm2_export.artifact.manifest import Delegation
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import LoweringError, MissingDependencyError, one_line
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.progress import Progress
from lfm2_export.progress.native_output import silenced
from lfm2_export.recipes import Recipe
from lfm2_export.targets._compiling import no_collection, quiet, swept_temporaries
from lfm2_export.targets.coreml.capabilities import CAPABILITIES
from lfm2_export.targets.coreml.table import TABLE
from lfm2_export.targets.static_border import FILE, example, method_spec, rows_of
from lfm2_export.targets.static_module import StaticModule
from lfm2_export.targets.target import Lowered, Target


class CoreMlTarget(Target):
    """Apple's Core ML through ExecuTorch."""

    name = "coreml"
    steps = TABLE
    capabilities = CAPABILITIES
    padded = True

    def check(self, recipe: Recipe, config: LFM2Config) -> None:
        """Refuse what this target cannot do, and say so when coremltools is missing."""
        super().check(recipe, config)
        coremltools_version()

    def half(self, recipe: Recipe) -> bool:
        return True

    def lower(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write `model.pte`. Raises LoweringError if Core ML does not take a method whole."""
        config, network = decoder.config, self.network(decoder.config)
        rows = rows_of(CAPABILITIES.option(recipe, "prefill_chunk"))
        with quiet(), no_collection(), swept_temporaries(), torch.no_grad():
            progress("writing the network as Core ML takes it")
            programs = {
                name: StaticModule(TABLE, network, decoder, recipe.window, count).exported(
                    example(config, recipe.window, count)
                )
                for name, count in rows.items()
            }
            progress("lowering to Core ML")
            with silenced(1, 2):  # coremltools' progress bars
                reports = _lowered(programs, CAPABILITIES.option(recipe, "compute_units"), folder / FILE)
        return Lowered(
            methods=[method_spec(name, count, config, recipe.window, reports[name]) for name, count in rows.items()],
            transport="slice",
            cache_layout="heads-time",
            versions={name: version(name) for name in ("executorch", "torch", "torchao")}
            | {"coremltools": coremltools_version()},
            runtime_requirement=f"executorch=={version('executorch')} with the CoreML backend",
        )


TARGET = CoreMlTarget()


def coremltools_version() -> str:
    """Return the version of the installed coremltools. MissingDependencyError if there is none."""
    try:
        return version("coremltools")
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "coremltools is not installed; pip install 'lfm2-export[coreml]' (Python 3.11 to 3.13)"
        ) from error


def _lowered(programs: dict[str, torch.export.ExportedProgram], units: str, path: Path) -> dict[str, Delegation]:
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from lfm2_export.targets._delegation import outside
    from lfm2_export.targets.coreml.package import settle

    specs = CoreMLBackend.generate_compile_specs(
        compute_unit=coremltools.ComputeUnit[units.upper()],
        minimum_deployment_target=coremltools.target.iOS18,  # the first with several functions in one program
        compute_precision=coremltools.precision.FLOAT16,
    )
    try:
        edge = to_edge_transform_and_lower(
            programs, partitioner=[CoreMLPartitioner(compile_specs=specs, lower_full_graph=True)]
        )
    except (NotImplementedError, ValueError, RuntimeError, KeyError, AssertionError) as error:
        raise LoweringError(f"Core ML does not take the model: {one_line(error)}") from error
    lowered, reports = [], {}
    for name in programs:
        module = edge.exported_program(name).graph_module
        calls, left = outside(module)
        if left or calls != 1:
            raise LoweringError(f"{name}: {calls} calls into Core ML; outside it: {', '.join(left) or 'nothing'}")
        (delegate,) = (part for _, part in module.named_children() if hasattr(part, "original_module"))
        inside = sum(node.op == "call_function" for node in delegate.original_module.graph.nodes)
        reports[name] = Delegation(backend="Core ML", calls=calls, delegated=inside, fallback=left)
        lowered.append(delegate)
    edge._named_data_store = settle(lowered)
    with path.open("wb") as file:
        edge.to_executorch().write_to_file(file)
    return reports
