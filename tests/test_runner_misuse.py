"""What lfm2_runner, built with sanitizers, is asked by its command line and by `serve`, and cannot do: one line."""

from __future__ import annotations

import json
import subprocess

import pytest
from runner_program import execute


@pytest.mark.parametrize(
    "words",
    [
        [], ["run", "x"], ["generate"], ["generate", "x", "y"], ["golden", "x"], ["generate", "x", "--tokens"],
        ["generate", "x", "--tokens", ""], ["generate", "x", "--tokens", "1,,2"], ["generate", "x", "--tokens", "-1"],
        ["generate", "x", "--tokens", "1e3"], ["generate", "x", "--tokens", "9" * 40], ["generate", "x", "--what"],
        ["generate", "x", "--temperature", "-1"], ["generate", "x", "--temperature", "nan"],
        ["generate", "x", "--min-p", "2"], ["generate", "x", "--seed", "-1"], ["generate", "x", "--threads", "0"],
        ["generate", "x", "--repetition-penalty", "0"], ["generate", "x", "--max-new", "many"],
        ["generate", "x", "--tokens-file", "/dev/null"], ["golden", "x", "y", "z"], ["chat", "x", "--on-full", "ask"],
        ["chat", "/tmp", "--tokens", "1"], ["chat", "/tmp", "--system", "x", "--load-state", "y"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_misuse_is_refused_in_one_line(words, sanitized):
    execute(sanitized, *words).refused()


@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        (b"nonsense", "not valid JSON"),
        (b"[]", "expected an object"),
        (b'{"do": "dance"}', "no request 'dance'"),
        (b'{"do": "feed"}', "tokens: missing"),
        (b'{"do": "feed", "tokens": []}', "at least one token"),
        (b'{"do": "feed", "tokens": [1024]}', "whole number"),
        (b'{"do": "feed", "tokens": [' + b"1," * 64 + b"1]}", "do not fit the window"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_served_session_answers_a_bad_request_and_goes_on(request_line, answer, small_pte, sanitized):
    feed = b'{"do": "feed", "tokens": [3, 4]}'
    line = [sanitized, "serve", small_pte.folder, "--threads", "1"]
    done = subprocess.run(line, input=request_line + b"\n" + feed + b"\n", capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    _, refused, fed, _ = done.stdout.split(b"\n", 3)
    assert answer in json.loads(refused)["error"]
    assert json.loads(refused)["position"] == 0
    assert json.loads(fed) == {"bytes": 4096, "position": 2}


@pytest.mark.parametrize(
    "request_line",
    [
        b'{"do": "restore", "position": 3, "bytes": 1}\nx',
        b'{"do": "restore", "position": 65, "bytes": 0}\n',
        b'{"do": "restore", "position": 0, "bytes": 4096}\nshort',
        b'{"do": "feed"',
    ],
)
def test_a_served_session_that_is_out_of_step_ends(request_line, small_pte, sanitized):
    line = [sanitized, "serve", small_pte.folder]
    done = subprocess.run(line, input=request_line, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"lfm2_runner: ")
    assert done.stderr.count(b"\n") == 1
    assert done.stdout.count(b"\n") == 1  # the greeting
