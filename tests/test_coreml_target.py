"""The coreml target, lowered for real; its program computed by coremltools, since Core ML itself runs on Macs alone."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import tiny_config, write_tiny
from command import code_of
from decoders import LFM3, random_decoder, relative, state_error, worst
from executorch.backends.apple.coreml import executorchcoreml
from executorch.exir._serialize._program import deserialize_pte_binary
from qnn_programs import manifest

from lfm2_export import recipes, runtimes
from lfm2_export.artifact.folder import Artifact, open_artifact
from lfm2_export.bundle.pack import bundle
from lfm2_export.bundle.verify import verify
from lfm2_export.errors import ArtifactError, LoweringError, MissingDependencyError, RecipeError, UsageError
from lfm2_export.evaluate.origin import checkpoint_of
from lfm2_export.graph.steps import Step
from lfm2_export.integrations import pytest_plugin
from lfm2_export.model.layers import RMSNorm
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity.reference import quantized_model
from lfm2_export.progress import silent
from lfm2_export.quantize.apply import quantize
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session
from lfm2_export.targets.coreml.capabilities import CAPABILITIES
from lfm2_export.targets.coreml.package import _settled
from lfm2_export.targets.coreml.table import TABLE
from lfm2_export.targets.coreml.target import TARGET
from lfm2_export.targets.static_entries import Entry

WINDOW, CHUNK = 48, 8
HALF_ERROR = 0.01  # of a graph in fp16; measured 1e-3 to 3e-3
OPTIONS = ("--set", f"window={WINDOW}", "--set", f"options.prefill_chunk={CHUNK}")


def installed() -> bool:
    try:
        version("coremltools")
    except PackageNotFoundError:
        return False
    return True


# coremltools has no wheels for Python 3.14 yet, so executorch brings it for older ones
pytestmark = pytest.mark.skipif(
    not installed() and sys.version_info >= (3, 14), reason="no coremltools for Python 3.14"
)
elsewhere = pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML itself is asked on a Mac")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("coreml") / "tiny")


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> tuple[int, Artifact]:
    """What `export` left with, and what it made."""
    folder = checkpoint.parent / "made"
    command = ["export", str(checkpoint), "--recipe", "coreml-fp16", *OPTIONS, "--effort", "quick", "-o", str(folder)]
    return code_of(*command), open_artifact(folder)


@pytest.fixture(scope="module")
def artifact(exported: tuple[int, Artifact]) -> Artifact:
    return exported[1]


@pytest.fixture
def sessions(artifact: Artifact, checkpoint: Path) -> Iterator[tuple[Session, Session]]:
    """The lowered program, and the model that it was lowered from."""
    decoder = quantized_model(artifact, checkpoint_of(artifact, str(checkpoint)))
    ours = runtimes.find("coremltools").open_session(artifact.folder, artifact.manifest)
    return ours, EagerSession(decoder, artifact.manifest.window)


class TestProgram:
    """What was lowered computes the model."""

    @pytest.mark.parametrize("chunks", [[17], [3, 1, 1, 7, 2, 3], [1] * 5], ids=str)
    def test_equals_eager(self, sessions: tuple[Session, Session], chunks: list[int]) -> None:
        ours, eager = sessions
        ids = np.random.default_rng(1).integers(0, tiny_config().vocab_size, sum(chunks)).tolist()
        for count in chunks:
            call, ids = ids[:count], ids[count:]
            assert relative(ours.prefill(call), eager.prefill(call)) < HALF_ERROR
            assert state_error(ours.state(), eager.state()) < HALF_ERROR

    def test_a_second_conversation_is_the_first_again(self, sessions: tuple[Session, Session]) -> None:
        ours, _ = sessions
        first = ours.prefill([5, 6, 7, 8])
        ours.prefill([9] * 11)
        ours.reset()
        np.testing.assert_array_equal(ours.prefill([5, 6, 7, 8]), first)

    def test_padding_touches_nothing(self, sessions: tuple[Session, Session]) -> None:
        ours, eager = sessions
        assert relative(ours.prefill([5, 6, 7], pad_to=CHUNK), eager.prefill([5, 6, 7])) < HALF_ERROR
        assert state_error(ours.state(), eager.state()) < HALF_ERROR

    def test_each_method_is_one_call_and_nothing_else(self, artifact: Artifact) -> None:
        assert [method.name for method in artifact.manifest.methods] == ["decode", "prefill"]
        for method in artifact.manifest.methods:
            assert method.delegation is not None
            assert (method.delegation.calls, method.delegation.fallback) == (1, {})

    def test_weights_lie_in_the_file_once(self, artifact: Artifact, checkpoint: Path) -> None:
        parameters = sum(p.numel() for p in quantized_model(artifact, open_checkpoint(str(checkpoint))).parameters())
        tables = 2 * 2 * WINDOW * tiny_config().head_dim  # RoPE's, in fp16
        assert (artifact.folder / "model.pte").read_bytes().count(b"CMJR") == 2  # methods that name the one model
        assert artifact.manifest.files["model.pte"].size < 2 * parameters + 2 * tables + 250_000  # graphs

    def test_a_row_of_zeros_and_values_past_fp16s_squares(self) -> None:
        step = Step("rms_norm", "norm", ("x",), ("y",), (1e-5,))
        norm = TABLE["rms_norm"](step, RMSNorm(16, 1e-5), WINDOW)
        for scale in (0.0, 1e-4, 0.02, 1.0, 1e3):
            x = scale * torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(norm(None, x), RMSNorm(16, 1e-5)(x))
            assert norm.half()(None, x.half()).isfinite().all()
            norm.float()

    def test_names_follow_from_the_content(self, artifact: Artifact) -> None:
        """ExecuTorch and coremltools name a model at random; a phone keeps compiled models by that name."""
        data = (artifact.folder / "model.pte").read_bytes()
        file = deserialize_pte_binary(data)
        (model,) = file.named_data.buffers
        name, same = _settled(_with_other_names(model))
        assert name.encode() in data
        assert same == bytes(model)
        assert _settled(_with_other_names(model, b"another"))[0] != name


def _with_other_names(model: bytes, change: bytes = b"") -> bytes:
    """The model as coremltools would have written it another time; with a `change` of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        assert executorchcoreml.unflatten_directory_contents(model, folder)
        metadata = next(Path(folder).rglob("metadata.json"))
        metadata.write_text(
            json.dumps(json.loads(metadata.read_bytes()) | {"identifier": f"executorch_{uuid.uuid4()}"})
        )
        manifest = next(Path(folder).rglob("Manifest.json"))
        written = manifest.read_text()
        for old in json.loads(written)["itemInfoEntries"]:
            written = written.replace(old, str(uuid.uuid4()))
        manifest.write_text(written)
        weights = next(Path(folder).rglob("weight.bin"))
        weights.write_bytes(weights.read_bytes() + change)
        flat = executorchcoreml.flatten_directory_contents(str(metadata.parent))
        assert flat is not None
        return flat


def test_lfm3_equals_eager_past_its_sliding_window(tmp_path: Path) -> None:
    recipe = recipes.load("coreml-fp16", [f"window={WINDOW}", f"options.prefill_chunk={CHUNK}"])
    shape = LFM3 | {"layer_types": ("sliding_attention", "full_attention")}
    decoder = quantize(random_decoder(**shape), recipe.quantization, recipe.cache)
    TARGET.check(recipe, decoder.config)
    lowered = TARGET.lower(decoder, recipe, tmp_path, silent)
    made = manifest(recipe, decoder.config, **lowered._asdict(), target="coreml")
    session = runtimes.find("coremltools").open_session(tmp_path, made)
    assert worst(session, EagerSession(decoder, WINDOW), [3, 1, 1, 11, 1]) < HALF_ERROR


@elsewhere
class TestHonesty:
    """A stand-in proves nothing: everything says so, the exit code first."""

    def test_export_leaves_with_a_code_of_its_own(self, exported: tuple[int, Artifact]) -> None:
        assert exported[0] == 3

    def test_the_manifest_says_why(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        assert manifest.unproven is not None
        assert "Core ML runs on Apple's systems only" in manifest.unproven
        assert manifest.verdict.startswith("not proven on the machine that made it")
        assert {gate.runtime for gate in manifest.parity} == {"coremltools"}

    def test_inspect_says_it(self, artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
        assert code_of("inspect", str(artifact.folder)) == 0
        assert "not proven on the machine that made it" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.parametrize("named", [(), ("--runtime", "coremltools")], ids=["all", "the stand-in alone"])
    def test_parity_does_not_pass(
        self, artifact: Artifact, checkpoint: Path, named: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = [str(artifact.folder), "--checkpoint", str(checkpoint), "--effort", "quick", "--json", *named]
        assert code_of("parity", *given) == 3
        report = json.loads(capsys.readouterr().out)
        assert report["passed"] is False
        assert {each["runtime"]: each["status"] for each in report["runtimes"]}["coremltools"] == "pass"

    def test_core_ml_itself_is_refused_in_one_line(self, artifact: Artifact, checkpoint: Path) -> None:
        with pytest.raises(MissingDependencyError, match="on a Mac"):
            runtimes.find("coreml").version()
        assert code_of("parity", str(artifact.folder), "--checkpoint", str(checkpoint), "--runtime", "coreml") == 2

    def test_a_fault_is_no_success_either(self, artifact: Artifact, checkpoint: Path, tmp_path: Path) -> None:
        """A program of other weights fails, whoever computes it."""
        other = write_tiny(tmp_path / "tiny")
        weights = other / "model.safetensors"
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        tensors = {name: tensor * 1.5 if "in_proj" in name else tensor for name, tensor in tensors.items()}
        save_file(tensors, weights)
        changed = open_checkpoint(str(other))
        source = artifact.manifest.source.model_copy(update={"weights_sha256": changed.digest()})
        from lfm2_export.parity.prove import prove

        broken = Artifact(artifact.folder, artifact.manifest.model_copy(update={"source": source}))
        report = prove(broken, changed, effort="quick")
        assert not report.passed
        assert report.unproven is None
        assert "fail" in {runtime.status for runtime in report.runtimes}

    def test_a_teams_own_test_fails(self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Report:
            unproven = "coreml: not here"

        monkeypatch.setattr("lfm2_export.pipeline.export", lambda *_, **__: (None, Report()))
        found = pytest_plugin._proof(str(checkpoint), "coreml-fp16", (), tmp_path / "out", "quick", None, 1)
        assert isinstance(found, Exception)
        assert "not proven on this machine" in str(found)


@elsewhere
class TestBundle:
    def test_for_ios_has_golden_cases_and_says_whose(self, artifact: Artifact, tmp_path: Path) -> None:
        made = bundle(artifact, "ios", tmp_path / "app.zip", allow_quick=True)
        assert made.unproven is not None
        found = verify(made.path)
        assert found.golden_cases == 3
        assert not found.proven
        assert found.unproven == artifact.manifest.unproven
        assert "CoreML" in found.runtime_requirement

    @pytest.mark.parametrize("kind", ["android", "web"])
    def test_for_others_is_refused(self, artifact: Artifact, tmp_path: Path, kind: str) -> None:
        with pytest.raises(UsageError, match="Core ML"):
            bundle(artifact, kind, tmp_path / "app", allow_quick=True)


class TestRefusals:
    def test_quantized_matrices(self) -> None:
        recipe = recipes.load("coreml-fp16", ["quantization.1.weight.bits=8"])
        with pytest.raises(RecipeError, match="coreml target has for a product"):
            TARGET.check(recipe, tiny_config())

    def test_a_processor_that_core_ml_does_not_know(self) -> None:
        with pytest.raises(RecipeError, match="compute_units"):
            TARGET.check(recipes.load("coreml-fp16", ["options.compute_units=tpu", "window=48"]), tiny_config())

    def test_what_core_ml_does_not_take_fails_the_export(
        self, artifact: Artifact, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Foreign(Entry):
            def forward(self, call: object, x: torch.Tensor) -> torch.Tensor:
                return torch.asinh(x)  # Core ML has no such operator

        monkeypatch.setattr("lfm2_export.targets.coreml.target.TABLE", TABLE | {"silu": Foreign})
        decoder = quantized_model(artifact, checkpoint_of(artifact, str(checkpoint)))
        recipe = recipes.Recipe.model_validate(artifact.manifest.recipe)
        with pytest.raises(LoweringError, match="asinh"):
            TARGET.lower(decoder, recipe, tmp_path, silent)

    def test_a_damaged_program(self, artifact: Artifact, tmp_path: Path) -> None:
        folder = tmp_path / "damaged"
        shutil.copytree(artifact.folder, folder)
        data = (folder / "model.pte").read_bytes()
        (folder / "model.pte").write_bytes(data.replace(b"CMJR", b"XXXX"))
        with pytest.raises(ArtifactError, match=r"model\.pte"):
            runtimes.find("coremltools").open_session(folder, artifact.manifest)


def test_its_options_are_those_of_the_recipe() -> None:
    assert recipes.load("coreml-fp16").options.keys() == CAPABILITIES.options.keys()
