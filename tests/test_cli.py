"""The command line's manners: quick help, one-line errors, exit codes, one JSON document, whole outputs or none."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from checkpoints import write_tiny
from command import cli, code_of
from hostile_checkpoints import HOSTILE

from lfm2_export.environment.machine import arithmetic


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano as an onnx-int8 artifact, exported and proven by the command itself."""
    output = tmp_path_factory.mktemp("cli") / "nano-onnx"
    done = cli("export", "nano", "-r", "onnx-int8", "-o", str(output), "--window", "256", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == "onnx"
    return output


def test_help_imports_nothing_heavy():
    probe = "import sys; sys.argv[1:] = ['export', '--help']; import runpy\n"
    probe += "try: runpy.run_module('lfm2_export', run_name='__main__')\n"
    probe += "except SystemExit: pass\n"
    probe += "print('HEAVY', sorted({'torch', 'onnx', 'executorch', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_no_message_loses_a_square_bracket(capsys):
    """Markup would take `[genai]` of a command to paste for a colour, and drop it."""
    from parity_reports import a_report

    from lfm2_export.cli import console
    from lfm2_export.cli.main import app
    from lfm2_export.parity.report import RuntimeReport

    command = "pip install 'lfm2-export[genai]' [/] [red]"
    report = a_report(name=command)
    report.runtimes.append(RuntimeReport(runtime="genai", reason=command))
    for gate in report.gates:
        gate.reason = command
    console.out.width = 400
    try:
        console.print_report(report)
        console.out.print(console.warned(command, command))
    finally:
        console.out._width = None
    shown = capsys.readouterr().out
    assert shown.count(command) >= 3 + sum(gate.reason is not None for gate in report.gates)
    helps = 0
    for registered in app.registered_commands:
        documents = [parameter.help or "" for parameter in _options(registered.callback)]
        for bracketed in {each for text in documents for each in re.findall(r"\[[^\]]+\]", text)}:
            helps += 1
            assert bracketed in "".join(_help_of(registered.name).split("\n")), (registered.name, bracketed)
    assert helps > 5


def _options(callback):
    hints = typing.get_type_hints(callback, include_extras=True)
    return [hint.__metadata__[0] for hint in hints.values() if hasattr(hint, "__metadata__")]


@functools.cache
def _help_of(command):
    environment = os.environ | {"COLUMNS": "400", "TERMINAL_WIDTH": "400"}
    line = [sys.executable, "-m", "lfm2_export", command, "--help"]
    return subprocess.run(line, capture_output=True, text=True, check=True, env=environment).stdout


def test_every_command_has_help():
    for command in (
        "export",
        "parity",
        "matrix",
        "chat",
        "bench",
        "compare",
        "bundle",
        "verify",
        "inspect",
        "run-on-device",
        "recipes",
        "init",
        "doctor",
    ):
        assert code_of(command, "--help") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["export", "--no-such-option"],
        ["export", "./no-such-folder"],
        ["export", "nano", "--recipe", "no-such-recipe"],
        ["export", "nano", "--window", "999999"],
        ["export", "nano", "--window", "1"],
        ["export", "nano", "--set", "window"],
        ["export", "nano", "--form", "hidden"],
        ["export", "nano", "-r", "onnx-int4", "--form", "resident"],
        ["export", "nano", "-r", "xnnpack-int4", "--set", "quantization.1.weight.group=48"],
        ["parity", "./no-such-folder"],
        ["matrix", "./no-such-plan.yaml"],
        ["chat", "./no-such-folder"],
        ["chat", "./no-such-folder", "--json"],
        ["inspect", "./no-such-folder"],
        ["bench", "./no-such-folder"],
        ["run-on-device", "./no-such-folder", "--runner", "x"],
        ["recipes", "no-such-recipe"],
        ["init", "--size", "9t"],
        ["init"],
    ],
    ids=" ".join,
)
def test_misuse_is_exit_code_2_one_line_and_no_output(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert code_of(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    if captured.err.startswith("error: "):  # click words its own usage errors, ours are one line
        assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_json_errors_are_json(capsys):
    assert code_of("inspect", "./no-such-folder", "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 2
    assert "no-such-folder" in document["error"]


def test_debug_shows_the_traceback():
    done = cli("inspect", "./no-such-folder", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_an_existing_output_is_kept_unless_forced(artifact, tmp_path):
    output = tmp_path / "mine"
    shutil.copytree(artifact, output)
    again = ("export", "nano", "-r", "onnx-int4", "-o", str(output), "--window", "64", "--no-verify", "-q")
    before = (output / "manifest.json").read_bytes()
    assert code_of(*again) == 2
    assert (output / "manifest.json").read_bytes() == before
    assert code_of(*again, "--force") == 0
    assert json.loads((output / "manifest.json").read_text())["recipe"]["name"] == "onnx-int4"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("cache", "said"), [("float32", False), ("bfloat16", True), ("float16", True)])
def test_a_cache_that_many_processors_are_slow_with_is_warned_of(cache, said, tmp_path, capsys):
    changes = ("--set", f"cache={cache}", "--window", "64", "--no-verify", "-q")
    assert code_of("export", "nano", "-r", "xnnpack-int8", "-o", str(tmp_path / "made"), *changes) == 0
    assert (f"a {cache} cache makes" in capsys.readouterr().out) == said


def test_force_never_replaces_what_others_made(tmp_path, capsys):
    output = tmp_path / "home"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    assert code_of("export", "nano", "-r", "onnx-int4", "-o", str(output), "--force") == 2
    assert "remove it yourself" in capsys.readouterr().err
    assert (output / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_exporting_a_hostile_checkpoint_is_one_line_and_leaves_nothing(name, tmp_path, capsys):
    checkpoint, output = tmp_path / "bad", tmp_path / "out"
    write_tiny(checkpoint)
    expected = HOSTILE[name](checkpoint)
    assert code_of("export", str(checkpoint), "-r", "xnnpack-fp32", "-o", str(output), "--window", "32", "-q") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert expected in shown
    assert not any(path.name == "out" or path.name.startswith(".") for path in tmp_path.iterdir())


def test_inspect_shows_what_is_inside(artifact, capsys):
    assert code_of("inspect", str(artifact)) == 0
    shown = capsys.readouterr().out
    for expected in (
        "nano",
        "onnx-int8",
        "onnx/model_quantized.onnx",
        "256 tokens",
        "262,144 bytes",  # of the caches: two layers' keys and values, two heads of 32 floats, all 256 tokens
        "6,144 whatever",  # of the convolutions
        "past_conv.0",
        "lowering: max error",
        "pass",
    ):
        assert expected in shown


def test_parity_proves_again_and_writes_its_report(artifact, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert code_of("parity", str(artifact), "--json", "--report", str(report), "--quiet") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(report.read_text())
    assert document["runtimes"][0]["status"] == "pass"
    assert document["runtimes"][0]["quality"]["tokens"] >= 2000


def test_parity_through_a_runtime_that_does_not_run_it_is_misuse(artifact):
    assert code_of("parity", str(artifact), "--runtime", "executorch") == 2
    assert code_of("parity", str(artifact), "--runtime", "no-such-runtime") == 2


def test_parity_fails_with_exit_code_1_when_a_gate_fails(artifact, tmp_path):
    from lfm2_export.artifact.folder import open_artifact, write_manifest

    copy = shutil.copytree(artifact, tmp_path / "strict")
    manifest = open_artifact(copy).manifest
    manifest.recipe["gates"]["quality"]["mean_kld"] = 1e-12
    write_manifest(copy, manifest)
    assert code_of("parity", str(copy), "--quiet") == 1


def test_parity_against_other_weights_is_refused(artifact, tmp_path):
    assert code_of("init", "--size", str(artifact / "config.json"), "-o", str(tmp_path / "other"), "-q") == 0
    assert code_of("parity", str(artifact), "--checkpoint", str(tmp_path / "other")) == 2


def test_parity_finds_a_folder_again_and_a_window_nobody_asked_for_fits_the_model(tiny_checkpoint, tmp_path, capsys):
    output = tmp_path / "artifact"
    assert code_of("export", str(tiny_checkpoint), "-r", "xnnpack-fp32", "-o", str(output), "--no-verify", "-q") == 0
    assert "a window of 256 tokens: the model has no more positions" in capsys.readouterr().out
    assert code_of("parity", str(output), "-q", "--effort", "quick") == 0
    tiny_checkpoint.rename(tmp_path / "moved")
    assert code_of("parity", str(output), "-q") == 2
    assert "pass --checkpoint FOLDER" in capsys.readouterr().err


def test_a_checkpoint_without_tokenizer_exports_and_is_proven_but_does_not_chat(artifact, tmp_path, capsys):
    checkpoint, output = tmp_path / "random", tmp_path / "random-onnx"
    assert code_of("init", "--size", str(artifact / "config.json"), "-o", str(checkpoint), "-q") == 0
    assert code_of("export", str(checkpoint), "-r", "onnx-fp32", "-o", str(output), "--window", "128", "-q") == 0
    shown = capsys.readouterr().out
    assert "random weights" in shown
    assert "random ids" in shown
    assert code_of("chat", str(output), "-p", "hello") == 2
    assert "no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "recipes", "inspect"])
def test_what_is_there_to_be_pasted_is_whole_at_80_columns(command, artifact, capsys, monkeypatch):
    from lfm2_export.cli import console
    from lfm2_export.environment import libraries

    monkeypatch.setattr(console.out, "_width", 80)
    nowhere = libraries.Requirement("no-such-library-as-this==1.2.3")
    lost = [libraries._part(nowhere.name, "a test", nowhere, required=False)]
    monkeypatch.setattr(libraries, "parts", lambda: lost)
    assert code_of(command, *([str(artifact)] if command == "inspect" else [])) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    if command == "doctor":
        assert "pip install 'no-such-library-as-this==1.2.3'\n" in shown
    if command == "inspect":
        manifest = json.loads((artifact / "manifest.json").read_text())
        assert manifest["source"]["weights_sha256"] in shown
        assert all(f"{file['sha256']}  {name}\n" in shown for name, file in manifest["files"].items())


def test_doctor_names_the_parts_and_is_healthy_here(capsys):
    assert code_of("doctor") == 0
    shown = capsys.readouterr().out
    assert "executorch" in shown
    assert "bf16 arithmetic: " in shown
    assert "ready" in shown
    assert code_of("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True


def test_a_processor_is_known_by_what_it_computes_in():
    cascade_lake = arithmetic(["sse2", "avx2", "fma", "f16c", "avx512f", "avx512_vnni"])
    assert cascade_lake == {
        "vector extensions": "avx2 fma f16c avx512f avx512_vnni",
        "int8 products": "avx512_vnni",
        "bf16 arithmetic": "none",
        "fp16 arithmetic": "none",
    }
    cortex_a76 = arithmetic({"asimd", "asimdhp", "asimddp"})
    assert cortex_a76["fp16 arithmetic"] == "asimdhp"
    assert cortex_a76["bf16 arithmetic"] == "none"
    assert set(arithmetic([]).values()) == {"none", "none of those looked for"}


def test_optimum_cli_makes_the_same_artifact(artifact, tmp_path):
    output = tmp_path / "by-optimum"
    command = ["export", "lfm2", "--model", "nano", "--recipe", "onnx-int8", "--window", "256", str(output)]
    program = "from optimum.commands.optimum_cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = json.loads((artifact / "manifest.json").read_text())
    theirs = json.loads((output / "manifest.json").read_text())
    assert theirs["files"] == ours["files"]
