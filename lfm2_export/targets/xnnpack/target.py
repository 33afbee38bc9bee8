"""ExecuTorch `.pte` for CPUs, computed by the XNNPACK delegate.

One method with a dynamic number of tokens serves prefill and decode, so the packed weights exist once. The explicit
form writes the caller's state tensors in place (`inplace` transport); the resident form keeps them in buffers and
carries the metadata methods that ExecuTorch's stock LLM runners ask for.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from torch.export import Dim, ExportedProgram

from lfm2_export.artifact.manifest import PROBE, MethodSpec, TensorSpec
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.steps import Network
from lfm2_export.model.decoder import Decoder, skeleton
from lfm2_export.model.resident import Resident
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.model.state import FLOAT_DTYPES, State
from lfm2_export.progress import Progress
from lfm2_export.recipes import Recipe
from lfm2_export.targets._compiling import no_collection, quiet, swept_temporaries
from lfm2_export.targets.target import Lowered, Target
from lfm2_export.targets.xnnpack.border import inputs, native_state, runner_metadata
from lfm2_export.targets.xnnpack.capabilities import CAPABILITIES, MAX_TOKENS
from lfm2_export.targets.xnnpack.delegation import delegation
from lfm2_export.targets.xnnpack.explicit import Explicit
from lfm2_export.targets.xnnpack.in_place import drop_state_copies
from lfm2_export.targets.xnnpack.network import DelegatedNetwork
from lfm2_export.targets.xnnpack.pte_file import intact_weights, tidy
from lfm2_export.targets.xnnpack.table import TABLE, prepared

FILE, METHOD = "model.pte", "forward"


class XnnpackTarget(Target):
    """The lowering to ExecuTorch's XNNPACK delegate."""

    name = "xnnpack"
    steps = TABLE
    capabilities = CAPABILITIES
    padded = False  # any number of tokens is a call

    def network(self, config: LFM2Config) -> Network:
        return prepared(skeleton(config))

    def lower(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write `model.pte`. Raises LoweringError if the delegate left a matrix product or convolution behind."""
        return _lower(decoder, recipe, folder, progress)

    def lower_with_probes(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Lower the explicit form; its method also returns what goes into and comes out of every module."""
        return _lower(decoder, recipe.model_copy(update={"form": "explicit"}), folder, progress, probed=True)

    def weights_error(self, decoder: Decoder, folder: Path) -> float:
        """Return the share of the delegate's stored weights, scales, norms and kernels that are not the decoder's.

        They are compared byte for byte.
        """
        with quiet(), torch.no_grad():
            expected = DelegatedNetwork(decoder, MAX_TOKENS).weights
        return len(expected - intact_weights(folder / FILE)) / len(expected)


TARGET = XnnpackTarget()


def _lower(decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, probed: bool = False) -> Lowered:
    limit = min(recipe.window, CAPABILITIES.option(recipe, "max_tokens"))
    state = native_state(decoder.config, recipe.window, FLOAT_DTYPES[recipe.cache])
    explicit = recipe.form == "explicit"
    with quiet(), no_collection(), swept_temporaries(), torch.no_grad():
        progress("packing weights for XNNPACK")
        network = DelegatedNetwork(decoder, limit, probed).eval()
        progress("tracing")
        program = _exported(network, state if explicit else None, state, limit)
        edge = to_edge(
            {METHOD: program},
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=None if explicit else runner_metadata(decoder.config, recipe.window, limit),
        )
        drop_state_copies(edge.exported_program(METHOD))
        report = delegation(edge.exported_program(METHOD).graph_module, network.operators)
        progress("writing the .pte")
        # the caller's own tensors serve as inputs: an arena copy of the KV cache would cost its size again
        planning = MemoryPlanningPass(alloc_graph_input=not explicit)
        final = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".pte") as raw:
            final.write_to_file(raw)
            raw.flush()
            tidy(Path(raw.name), folder / FILE)
    given = inputs(state if explicit else {}, "position" if explicit else "start_pos")
    logits = TensorSpec(name="logits", dtype="float32", shape=[1, decoder.config.vocab_size])
    probes = [TensorSpec(name=f"{PROBE}{point}", dtype="float32", shape=[]) for point in network.points]
    method = MethodSpec(
        name=METHOD, file=FILE, inputs=given, outputs=[logits, *probes], max_tokens=limit, delegation=report
    )
    return Lowered(
        methods=[method],
        transport="inplace",
        cache_layout="heads-time",
        versions={name: version(name) for name in ("executorch", "torch", "torchao")},
        runtime_requirement=f"executorch=={version('executorch')}",
    )


def _exported(network: DelegatedNetwork, given: State | None, state: State, limit: int) -> ExportedProgram:
    tokens = {1: Dim("T", min=1, max=limit)}
    call = (torch.zeros(1, 2, dtype=torch.long), torch.tensor([0]))
    if given is None:
        return torch.export.export(Resident(network, state), call, dynamic_shapes=(tokens, None), strict=True)
    dynamic = (tokens, None, dict.fromkeys(given))
    return torch.export.export(Explicit(network), (*call, given), dynamic_shapes=dynamic, strict=True)
