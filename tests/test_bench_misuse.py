"""What the benchmark command refuses: one line, exit code 2, and nobody's file written over."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
from command import QUICK, code_of


def test_drafts_are_for_artifacts_alone(capsys):
    assert code_of("bench", "eager:nano", *QUICK, "--draft", "lookup") == 2
    assert "--draft" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--vs", "./no-such-file.gguf"],
        ["--runtime", "executorch"],  # another target's
        ["--vs", "eager:./no-such-folder"],
        ["--contexts", "many"],
        ["--contexts", "0"],
        ["--prefill", ""],
        ["--rounds", "0"],
        ["--threads", "0"],
        ["--threads", "99999"],
        ["--plot", "speed.pdf"],
        ["--plot", "no-such-folder/speed.png"],
    ],
    ids=" ".join,
)
def test_misuse_is_one_line_and_exit_code_2(options, small_onnx, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert code_of("bench", str(small_onnx), "--quiet", *options) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_plot_is_kept_unless_forced(small_onnx, tmp_path):
    plot = tmp_path / "mine.png"
    plot.write_bytes(b"mine")
    assert code_of("bench", str(small_onnx), *QUICK, "--plot", str(plot)) == 2
    assert code_of("bench", str(small_onnx), *QUICK, "--plot", str(plot), "--force") == 2  # no plot of ours
    assert plot.read_bytes() == b"mine"
    plot.unlink()
    assert code_of("bench", str(small_onnx), *QUICK, "--plot", str(plot)) == 0
    assert plot.read_bytes() != b"mine"
    drawn = plot.stat()
    assert code_of("bench", str(small_onnx), *QUICK, "--plot", str(plot), "--force") == 0
    assert (plot.stat().st_ino, plot.stat().st_mtime_ns) != (drawn.st_ino, drawn.st_mtime_ns)


def test_a_file_that_is_no_llm_program_is_one_line(small_onnx, tmp_path, capsys):
    other = tmp_path / "broken.pte"
    other.write_bytes(os.urandom(4096))
    assert code_of("bench", str(small_onnx), "--vs", str(other), *QUICK) == 2
    shown = capsys.readouterr().err
    assert "broken" in shown
    assert shown.count("\n") == 1


def test_without_llama_cpp_the_message_says_what_to_install(small_onnx, tmp_path, monkeypatch, capsys):
    from lfm2_export import extras

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "llama_cpp" else find_spec(name))
    assert code_of("bench", str(small_onnx), "--vs", str(tmp_path / "model.gguf"), *QUICK) == 2
    assert "pip install 'lfm2-export[bench]'" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed: it compiles for minutes")
def test_a_file_that_is_no_gguf_is_one_line(small_onnx, tmp_path, capsys):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + os.urandom(4096))
    assert code_of("bench", str(small_onnx), "--vs", str(tmp_path / "broken.gguf"), *QUICK) == 2
    shown = capsys.readouterr().err
    assert "llama.cpp" in shown
    assert shown.count("\n") == 1
