"""A matrix on a Ray cluster of this machine: no machine gets more than it holds, and one that dies costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_config

from lfm2_export.environment.resources import proof_bytes
from lfm2_export.matrix.folder import Folder
from lfm2_export.matrix.outcome import Outcome
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.recipes import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("ray") is None and "CI" not in os.environ, reason="Ray is missing: pip install 'lfm2-export[ray]'"
    ),
]
STORE = 80_000_000  # bytes; the least that Ray takes is 75 MB


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose first machine takes no cell."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    made = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False})
    yield made
    made.shutdown()


def begun(folder: Folder, names: Iterable[str]) -> list[Outcome]:
    return [outcome for name in names if (outcome := folder.read(name)) is not None and outcome.status == "begun"]


def test_a_machine_that_dies_in_the_middle_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    """Two machines with memory for one cell at a time; the first is killed when it has begun."""
    init_checkpoint(replace(tiny_config(), head_dim=16, hidden_size=32), tmp_path / "tiny")
    (tmp_path / "plan.yaml").write_text(
        "checkpoints: [./tiny]\n"
        "recipes: [{recipe: onnx-fp32, name: short}, {recipe: onnx-fp32, name: long, set: [window=48]}]\n"
        "set: [window=32]\neffort: quick\n"
    )
    windows = {"tiny-short": 32, "tiny-long": 48}
    needed = proof_bytes(open_checkpoint(str(tmp_path / "tiny")).config, load("onnx-fp32").quantization)
    machine = {"num_cpus": 4, "memory": int(1.5 * needed), "object_store_memory": STORE}
    first = cluster.add_node(**machine)
    folder = Folder(tmp_path / "out")
    words = ["matrix", "plan.yaml", "--output", "out", "--ray", cluster.address, "--quiet"]
    command = subprocess.Popen([sys.executable, "-m", "lfm2_export", *words], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 400
        while not (cut_off := begun(folder, windows)):
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(first, allow_graceful=False)  # at once: the cell takes seconds, and so does a new machine
        cluster.add_node(**machine)
        most = 0
        while command.poll() is None:
            most = max(most, sum(each.machine != cut_off[0].machine for each in begun(folder, windows)))
            time.sleep(0.05)
        assert command.returncode == 0
    finally:
        command.kill()
    assert most == 1  # though the machine has four processors
    for name, window in windows.items():
        outcome = folder.read(name)
        assert outcome is not None
        assert outcome.status == "proven"
        assert outcome.machine != cut_off[0].machine
        alone = tmp_path / "alone" / name
        export(str(tmp_path / "tiny"), "onnx-fp32", alone, overrides=[f"window={window}"], effort="quick")
        assert contents(folder.artifact(name)) == contents(alone)
    assert sorted(path.name for path in (tmp_path / "out" / "artifacts").iterdir()) == sorted(windows)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
