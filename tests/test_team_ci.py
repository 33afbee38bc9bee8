"""What a team puts into its own CI: the GitHub Action's script and the pytest plugin, both on a tiny random model."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import tiny_config
from junitparser import JUnitXml
from ruamel.yaml import YAML

from lfm2_export.model.random_init import init_checkpoint

pytest_plugins = ["pytester"]

ACTION = Path(__file__).parent.parent / ".github" / "actions" / "prove"
IMPOSSIBLE = "gates.lowering.max_error=1.0e-12"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("team") / "my model"
    init_checkpoint(replace(tiny_config(), head_dim=16, hidden_size=32), folder)
    return folder


def prove(folder: Path, **settings: object) -> tuple[subprocess.CompletedProcess[str], str, str]:
    """The action's script as GitHub runs it: (process, job summary, step outputs)."""
    names = ("summary", "output")
    for name in names:
        (folder / name).unlink(missing_ok=True)
    github = {"GITHUB_STEP_SUMMARY": str(folder / "summary"), "GITHUB_OUTPUT": str(folder / "output")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {f"LFM2_{name.upper()}": str(value) for name, value in settings.items()}
    done = subprocess.run(
        ["bash", str(ACTION / "prove.sh")],
        env=os.environ | github | given | {"PATH": path, "LFM2_REPORTS": str(folder / "re ports")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    found = ((folder / name).read_text() if (folder / name).exists() else "" for name in names)
    return done, *found


def test_the_action_proves_a_recipe_and_shows_it(checkpoint, tmp_path):
    done, summary, outputs = prove(tmp_path, checkpoint=checkpoint, recipes="onnx-fp32\n\n", set="window=32\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outputs == "passed=true\n"
    assert summary.splitlines()[:2] == ["<!-- made by lfm2-export -->", "### onnx-fp32: ✅ proven"]
    assert "| onnxruntime | lowering: max error |" in summary
    reports = tmp_path / "re ports"
    assert (reports / "onnx-fp32" / "manifest.json").is_file()
    assert "<svg" in (reports / "onnx-fp32.html").read_text()
    document = JUnitXml.fromfile(str(reports / "onnx-fp32.xml"))
    assert document.failures == 0
    assert document.tests > 8


def test_the_action_fails_with_the_gate_in_its_summary_and_goes_on_to_the_next_recipe(checkpoint, tmp_path):
    hostile = "$(touch pwned)`touch pwned`; touch pwned"
    recipes = f"onnx-fp32\n{hostile}"
    done, summary, outputs = prove(tmp_path, checkpoint=checkpoint, recipes=recipes, set=f"window=32\n{IMPOSSIBLE}")
    assert done.returncode == 2  # the worse of a failed gate and an unknown recipe
    assert outputs == "passed=false\n"
    assert "❌ NOT proven" in summary
    assert "❌ no artifact" in summary
    assert "no recipe" in summary
    reports = tmp_path / "re ports"
    assert not (reports / "onnx-fp32").exists()
    assert JUnitXml.fromfile(str(reports / "onnx-fp32.xml")).failures >= 1
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()


@pytest.mark.slow
def test_the_action_takes_a_plan(checkpoint, tmp_path):
    plan = tmp_path / "my plan.yaml"
    cells = (
        f"checkpoints: [{{source: '{checkpoint}', name: mine}}]\nrecipes: [onnx-fp32, {{recipe: onnx-fp32, name: no}}]"
    )
    plan.write_text(f"{cells}\nset: [window=32]\neffort: quick\nexclude: [mine-no]\n")
    done, summary, outputs = prove(tmp_path, plan=plan)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outputs == "passed=true\n"
    assert summary.splitlines()[1] == "### my plan: ✅ 1 proven, 1 excluded (quick effort)"
    reports = tmp_path / "re ports"
    assert (reports / "artifacts" / "mine-onnx-fp32" / "manifest.json").is_file()
    assert JUnitXml.fromfile(str(reports / "junit.xml")).failures == 0

    plan.write_text("checkpoints: nothing\n")
    done, summary, outputs = prove(tmp_path, plan=plan)
    assert done.returncode == 2
    assert outputs == "passed=false\n"
    assert "my plan.yaml:1: checkpoints" in summary


def test_the_action_hands_its_inputs_over_as_environment_only():
    action = YAML(typ="safe").load((ACTION / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]  # an input inside a script would be code
    given = action["runs"]["steps"][-1]["env"]
    assert {value.split(".")[1].strip(" }") for value in given.values()} <= set(action["inputs"])
    script = (ACTION / "prove.sh").read_text()
    assert all(name in script for name in given)


def test_the_plugins_fixture_proves_and_fails_with_the_gates(pytester, checkpoint):
    pytester.makepyfile(
        f"""
        def test_proven(lfm2_prove):
            proof = lfm2_prove({str(checkpoint)!r}, "onnx-fp32", "window=32")
            assert proof.artifact.manifest.window == 32
            assert proof.report.passed
            assert lfm2_prove({str(checkpoint)!r}, "onnx-fp32", "window=32") is proof

        def test_not_proven(lfm2_prove):
            lfm2_prove({str(checkpoint)!r}, "onnx-fp32", "window=32", {IMPOSSIBLE!r})

        def test_misuse(lfm2_prove):
            lfm2_prove("./nowhere", "onnx-fp32")
        """
    )
    plugins = "-p", "lfm2_export.integrations.pytest_plugin", "-p", "no:xdist"
    # a process of its own: in this one pytester would unload what it has imported, and protobuf cannot be loaded twice
    run = pytester.runpytest_subprocess(*plugins, "--junitxml=junit.xml", "--lfm2-reports=reports")
    run.assert_outcomes(passed=1, failed=2)
    run.stdout.fnmatch_lines(["*fail * onnxruntime: lowering: max error * (limit 1e-12)*", "*nowhere*"])
    assert sorted(path.name for path in (pytester.path / "reports").iterdir()) == [
        f"{number}-onnx-fp32{suffix}" for number in (1, 2) for suffix in (".html", ".json", ".md")
    ]
    assert "onnx-fp32: onnxruntime: lowering: max error" in (pytester.path / "junit.xml").read_text()
