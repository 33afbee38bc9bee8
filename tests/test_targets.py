"""A target is a folder: one that is put beside the others is found, asked what it can do, and exported to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lfm2_export import targets
from lfm2_export.errors import RecipeError
from lfm2_export.graph.trace import trace
from lfm2_export.model.load import open_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.targets.target import Target

TOY = """
import json

from lfm2_export.artifact.manifest import MethodSpec
from lfm2_export.graph.trace import trace
from lfm2_export.targets.capabilities import FLOAT32, Arithmetic, Capabilities, Stored
from lfm2_export.targets.target import Lowered, Target

TABLE = {kind: kind.upper() for kind in KINDS}


class Toy(Target):
    name = "toy"
    steps = TABLE
    capabilities = Capabilities(
        title="a list of steps",
        arithmetics=(Arithmetic(embedding=(Stored(FLOAT32),), others=(Stored(FLOAT32),), caches=("float32",)),),
    )
    padded = False

    def lower(self, decoder, recipe, folder, progress, sequences=()):
        steps = trace(decoder.config, self.padded).steps
        (folder / "steps.json").write_text(json.dumps([TABLE[step.kind] for step in steps]))
        method = MethodSpec(name="forward", file="steps.json", inputs=[], outputs=[], max_tokens=1)
        return Lowered([method], "inplace", "heads-time", {}, "nothing")


TARGET = Toy()
"""
RECIPE = """\
name: toy-fp32
summary: a list of steps
target: toy
form: explicit
window: 64
cache: float32
quantization: []
gates:
  lowering: {max_error: 0.1}
  quality: {mean_kld: 0.1, top1: 0.9}
"""
KINDS = sorted(trace(open_checkpoint("nano").config, padded=False).kinds())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a folder is a target."""
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(tmp_path)])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("lfm2_export.targets.toy")]:
        del sys.modules[name]


def put(place: Path, kinds: list[str]) -> None:
    (place / "toy").mkdir()
    (place / "toy" / "__init__.py").touch()
    (place / "toy" / "target.py").write_text(TOY.replace("KINDS", repr(kinds)))


def test_a_folder_beside_the_others_is_a_target(place: Path) -> None:
    assert "toy" not in targets.names()
    put(place, KINDS)
    assert "toy" in targets.names()
    assert isinstance(targets.find("toy"), Target)
    artifact, _ = export("nano", str(place / "recipe.yaml"), place / "made", verify=False)
    assert (artifact.manifest.target, artifact.manifest.methods[0].file) == ("toy", "steps.json")
    written = json.loads((place / "made" / "steps.json").read_text())
    steps = trace(open_checkpoint("nano").config, padded=False).steps
    assert written == [step.kind.upper() for step in steps]


def test_a_step_without_an_entry_is_refused_by_name_before_a_weight_is_read(place: Path, monkeypatch) -> None:
    put(place, [kind for kind in KINDS if kind != "short_conv"])
    monkeypatch.setattr("lfm2_export.checkpoint.weights._read", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(RecipeError, match=r"toy target cannot write the step 'short_conv' \(at layers\.0\.conv\)"):
        export("nano", str(place / "recipe.yaml"), place / "made", verify=False)
    assert not (place / "made").exists()


def test_what_its_table_of_capabilities_lacks_is_refused(place: Path) -> None:
    put(place, KINDS)
    with pytest.raises(RecipeError, match="toy-fp32"):
        export("nano", str(place / "recipe.yaml"), place / "made", overrides=["cache=float16"], verify=False)


def test_an_unknown_target_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"unknown target 'toy'; known: coreml, onnx, onnx_qnn, qnn, xnnpack"):
        targets.find("toy")


@pytest.mark.parametrize("name", targets.names())
def test_every_target_is_a_typed_class_with_a_table(name: str) -> None:
    target = targets.find(name)
    assert isinstance(target, Target)
    assert target.name == name
    config = open_checkpoint("nano").config
    assert target.network(config).kinds().keys() <= set(target.steps)
