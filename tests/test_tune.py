"""The mixed-precision search: what it measures, what it chooses, and that `export` takes what it writes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import onnx
import pytest
from decoders import LFM3, config
from onnx import numpy_helper
from typer.testing import CliRunner

from lfm2_export import recipes, targets
from lfm2_export.bench.bytes_read import weight_bytes
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.cli.main import app
from lfm2_export.errors import UsageError
from lfm2_export.graph.matrices import matrices
from lfm2_export.pipeline import export
from lfm2_export.quantize.calibration import Calibration
from lfm2_export.quantize.size import model_bytes
from lfm2_export.tune.allocation import cheapest, front
from lfm2_export.tune.choices import kept_bytes, units
from lfm2_export.tune.search import Tuning, tune

COST = [[0.9, 0.3, 0.0], [0.2, 0.05, 0.01], [0.4, 0.39, 0.1]]
WEIGHT = [[1, 2, 4], [10, 11, 20], [2, 3, 5]]


class TestAllocation:
    @pytest.mark.parametrize("budget", [13, 14.5, 17, 20, 29, 100])
    def test_it_is_the_best_of_all_choices(self, budget: float) -> None:
        def total(table: list[list[float]], choice: tuple[int, ...]) -> float:
            return sum(row[at] for row, at in zip(table, choice, strict=True))

        fitting = [c for c in itertools.product(range(3), repeat=3) if total(WEIGHT, c) <= budget]
        found = cheapest(COST, WEIGHT, budget)
        assert found.cost == pytest.approx(min(total(COST, choice) for choice in fitting))
        assert found.weight == total(WEIGHT, found.chosen) <= budget

    def test_what_is_kept_is_part_of_the_budget(self) -> None:
        assert cheapest(COST, WEIGHT, 17 + 5, kept=5) == cheapest(COST, WEIGHT, 17)
        with pytest.raises(UsageError, match="the least there is, is 18"):
            cheapest(COST, WEIGHT, 17.9, kept=5)

    def test_a_budget_that_nothing_fits_is_refused(self) -> None:
        with pytest.raises(UsageError, match="the least there is, is 13"):
            cheapest(COST, WEIGHT, 12.9)

    def test_on_the_front_more_bytes_cost_less(self) -> None:
        found = front(COST, WEIGHT)
        assert len(found) > 3
        assert [each.weight for each in found] == sorted(each.weight for each in found)
        assert [each.cost for each in found] == sorted((each.cost for each in found), reverse=True)


class TestUnits:
    @pytest.mark.parametrize("shape", [{}, LFM3], ids=["LFM2", "LFM3"])
    def test_every_matrix_but_gates_is_decided_once(self, shape: dict[str, Any]) -> None:
        paths = [path for unit in units(config(**shape), "xnnpack") for path in unit.paths]
        assert sorted(paths) == sorted(path for path, kind, _ in matrices(config(**shape)) if kind != "gate")
        assert kept_bytes(config(**shape)) == (3 * 4 * 64 * 4 if shape else 0)  # heads, hidden, bytes, in three layers

    def test_a_target_without_a_choice_is_refused(self, nano: Checkpoint) -> None:
        with pytest.raises(UsageError, match="not for 'qnn'"):
            units(nano.config, "qnn")


@pytest.mark.slow
def test_a_budget_is_kept_and_used_where_it_counts(nano: Checkpoint, tmp_path: Path) -> None:
    output, plot = tmp_path / "my-nano.yaml", tmp_path / "front.svg"
    done = CliRunner().invoke(
        app,
        ["tune", "nano", "--budget", "0.9MB", "--windows", "6", "-o", str(output), "--plot", str(plot), "--json", "-q"],
    )
    assert done.exit_code == 0, done.output
    found = Tuning.model_validate_json(done.stdout)
    recipe = recipes.load(str(output))
    recipe.check(nano.config)
    targets.find("xnnpack").check(recipe, nano.config)
    assert recipe.name == "my-nano"
    assert 0.85e6 < model_bytes(nano.config, recipe.quantization) == found.chosen.stored_bytes <= 0.9e6
    assert plot.read_text().count("<svg") == 1
    costs = [(row["int4 g128"], row["int4 g32"], row["int8 per row"]) for row in found.modules.values()]
    assert sum(coarse > fine > eight for coarse, fine, eight in costs) > 0.8 * len(costs)
    assert found.measured_kld == pytest.approx(found.chosen.predicted_kld, rel=0.6)
    for point in found.front:
        assert point.stored_bytes > found.chosen.stored_bytes or point.predicted_kld >= found.chosen.predicted_kld
    assert found.chosen.predicted_kld < 0.7 * sum(row["int4 g32"] for row in found.modules.values())


def matrix_product_bytes(path: Path) -> int:
    """What the products of an ONNX graph read of its file: integers and scales."""
    graph = onnx.load(path).graph
    stored = {tensor.name: len(numpy_helper.to_array(tensor).tobytes()) for tensor in graph.initializer}
    read = {name for node in graph.node if node.op_type == "MatMulNBits" for name in node.input[1:]}
    return sum(stored[name] for name in read if name)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "source", "kilobytes"), [("xnnpack", "nano-lfm3", 950), ("onnx", "nano", 800)])
def test_an_exported_model_reads_no_more_than_the_read_budget(
    target: str, source: str, kilobytes: int, tmp_path: Path
) -> None:
    output, budget = tmp_path / "quick.yaml", 1000 * kilobytes
    limit = ["--read-budget", f"{kilobytes} kB", "--target", target, "--windows", "4"]
    done = CliRunner().invoke(app, ["tune", source, *limit, "-o", str(output), "--json", "-q"])
    assert done.exit_code == 0, done.output
    chosen = Tuning.model_validate_json(done.stdout).chosen
    alone = ["window=64", "options.speculation=0"]  # the program of one method
    artifact, _ = export(source, str(output), tmp_path / "made", overrides=alone, verify=False)
    assert 0.95 * budget < weight_bytes(artifact.manifest) == chosen.read_bytes <= budget
    file = artifact.folder / artifact.manifest.methods[0].file
    if target == "onnx":
        assert matrix_product_bytes(file) <= budget
    else:  # the head is the embedding, so all weights are read; beside them lies the program
        assert 0 < file.stat().st_size - chosen.read_bytes < 0.17e6


def test_an_embedding_of_its_own_is_read_a_row_at_a_time() -> None:
    table, *others = units(config(tie_word_embeddings=False), "xnnpack")
    option = table.options[0]
    assert table.paths == ("embed_tokens",)
    assert table.read(option) * table.matrices[0].shape[0] == table.stored(option)
    assert all(unit.read(each) == unit.stored(each) for unit in others for each in unit.options)


def test_exactly_one_limit(nano: Checkpoint) -> None:
    with pytest.raises(UsageError, match="exactly one limit"):
        tune(nano, "onnx", "tuned", stored=1e6, kld=0.1, text=Calibration(windows=1))
    done = CliRunner().invoke(app, ["tune", "nano", "--budget", "many"])
    assert isinstance(done.exception, UsageError)
