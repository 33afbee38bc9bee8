"""run-on-device against a fake adb and a runner that computes with the real program: no phone was ever connected."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from checkpoints import tiny_config
from command import code_of

from lfm2_export.artifact.folder import Artifact
from lfm2_export.cli.main import run
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import export

HERE = Path(__file__).parent / "fake_phone"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """(recipe, form, more overrides) → an unproven nano artifact, each lowered once."""
    done: dict[tuple[str, ...], Artifact] = {}

    def make(recipe: str, form: str = "explicit", *more: str) -> Artifact:
        if (recipe, form, *more) not in done:
            output = tmp_path_factory.mktemp("device") / f"{recipe}-{form}"
            changes = [f"form={form}", "window=64", *more]
            done[recipe, form, *more] = export("nano", recipe, output, overrides=changes, verify=False)[0]
        return done[recipe, form, *more]

    return make


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake phone's /data/local/tmp; its adb is on PATH."""
    storage, programs = tmp_path / "phone", tmp_path / "bin"
    storage.mkdir()
    programs.mkdir()
    adb = programs / "adb"
    adb.write_bytes((HERE / "adb").read_bytes())
    adb.chmod(0o755)
    (tmp_path / "qnn_executor_runner").write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/runner.py "$@"\n')
    (tmp_path / "libQnnHtp.so").write_bytes(b"library")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_PHONE", str(storage))
    return storage


def call(artifact: Artifact, phone: Path, *more: str) -> int:
    given = ["--runner", str(phone.parent / "qnn_executor_runner"), "--library", str(phone.parent / "libQnnHtp.so")]
    with pytest.raises(SystemExit) as left:
        run(["run-on-device", str(artifact.folder), "-q", *given, *more])
    return int(left.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["xnnpack-fp32", "xnnpack-int8"])
def test_a_healthy_phone_passes_the_recipes_own_gates(recipe, made, phone, capsys):
    artifact = made(recipe)
    assert call(artifact, phone, "--json", "--steps", "4") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    (runtime,) = report["runtimes"]
    assert runtime["version"] == "Fake 1, SM8650, Android 15"
    assert {gate["name"]: gate["status"] for gate in runtime["gates"]}["lowering: max error"] == "pass"
    assert runtime["lowering"]["max_error"] <= artifact.manifest.recipe["gates"]["lowering"]["max_error"]
    assert runtime["lowering"]["median_step"] < 1e-5
    assert list(phone.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="QNN is not installed: pip install 'lfm2-export[qnn]'")
def test_an_npu_program_is_judged_by_its_logits_and_its_slices(made, phone, capsys):
    artifact = made("qnn-fp16", "explicit", "options.weight_sharing=false")  # the emulator loads no shared weights
    assert call(artifact, phone, "--json", "--steps", "3") == 0
    (runtime,) = json.loads(capsys.readouterr().out)["runtimes"]
    assert 0 < runtime["lowering"]["state_error"] < 0.02
    assert runtime["lowering"]["top1"] == 1


def test_wrong_numbers_are_exit_code_1_with_the_table(made, phone, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_PHONE_FAULT", "wrong")
    assert call(made("xnnpack-fp32"), phone, "--steps", "2") == 1
    assert "NOT proven" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none", "no phone: connect one"),
        ("several", "several phones: phone-1, phone-2; choose one with --serial"),
        ("unauthorized", "no phone: not ready: phone-1 (unauthorized)"),
        ("full", "its storage is full"),
        ("push", "Connection reset by peer"),
        ("gone", "the connection broke: error: device 'phone-1' not found"),
        ("crash", "crashed with SIGSEGV"),
        ("refuse", "failed with status 3: E 00:00:00 Failed to create device handle, error 14001"),
        ("missing", "left no output_1_0.raw"),
        ("short", "output_0_0.raw has 12 bytes, 4096 were expected"),
        ("slow", "did not finish within 2 seconds"),
    ],
)
def test_each_failure_is_exit_code_2_and_one_line(fault, message, made, phone, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_PHONE_FAULT", fault)
    more = ["--timeout", "2"] if fault == "slow" else []
    assert call(made("xnnpack-fp32"), phone, "--steps", "2", *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(phone.iterdir()) == []  # nothing is left behind


def test_no_adb_is_one_line(made, phone, capsys):
    assert call(made("xnnpack-fp32"), phone, "--adb", "/nowhere/adb") == 2
    assert "install Android's platform-tools" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "form", "message"),
    [("xnnpack-fp32", "resident", "export with --form explicit"), ("onnx-fp32", "explicit", "not 'onnx' ones")],
)
def test_what_the_runner_cannot_execute_is_refused(recipe, form, message, made, phone, capsys):
    assert call(made(recipe, form), phone) == 2
    assert message in capsys.readouterr().err


def test_files_that_would_overwrite_each_other_are_refused(made, phone, capsys):
    other = phone.parent / "other" / "libQnnHtp.so"
    other.parent.mkdir()
    other.write_bytes(b"another")
    assert call(made("xnnpack-fp32"), phone, "--library", str(other)) == 2
    assert "two files named libQnnHtp.so" in capsys.readouterr().err
    assert call(made("xnnpack-fp32"), phone, "--library", "nowhere.so") == 2
    assert "no such file" in capsys.readouterr().err


def test_one_of_several_phones_is_chosen_and_may_keep_what_was_run(made, phone, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_PHONE_FAULT", "several")
    assert call(made("xnnpack-fp32"), phone, "--serial", "phone-3") == 2
    assert "no phone phone-3" in capsys.readouterr().err
    assert call(made("xnnpack-fp32"), phone, "--steps", "1", "--serial", "phone-2", "--keep") == 0
    (folder,) = phone.iterdir()
    assert {"model.pte", "qnn_executor_runner", "libQnnHtp.so", "calls", "outputs_0", "outputs_1"} <= {
        path.name for path in folder.iterdir()
    }


@pytest.mark.slow
def test_a_matrix_proves_on_the_phone_as_well(phone, tmp_path, monkeypatch):
    programs, checkpoint = phone.parent, tmp_path / "tiny"
    init_checkpoint(replace(tiny_config(), head_dim=16, hidden_size=32), checkpoint)
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"checkpoints: [{checkpoint}]\nrecipes: [xnnpack-fp32, onnx-fp32]\n"
        f"phone: {{runner: {programs}/qnn_executor_runner, libraries: [{programs}/libQnnHtp.so], steps: 2}}\n"
        "set: [window=64]\neffort: quick\n"
    )
    monkeypatch.setenv("FAKE_PHONE_FAULT", "none")
    words = ["matrix", str(plan), "--output", str(tmp_path / "out"), "--quiet"]
    assert code_of(*words) == 1
    pte, onnx = json.loads((tmp_path / "out" / "matrix.json").read_text())["cells"]
    assert (pte["status"], pte["reason"]) == ("failed", "no phone: connect one with USB debugging")
    assert (onnx["status"], onnx["rows"][-1]["runtime"], onnx["rows"][-1]["status"]) == ("proven", "phone", "not meant")

    monkeypatch.delenv("FAKE_PHONE_FAULT")
    assert code_of(*words) == 0
    pte, onnx = json.loads((tmp_path / "out" / "matrix.json").read_text())["cells"]
    assert (pte["rows"][-1]["runtime"], pte["rows"][-1]["status"], pte["kept"]) == ("phone phone-1", "pass", False)
    assert onnx["kept"]
