"""Damaged and forged state files given to lfm2_runner, built with sanitizers: one line each."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runner_program import flipped, generate

from lfm2_export.artifact.folder import Artifact

FLIPS = 300
Edit = Callable[[dict[str, Any]], object]


def state_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def state_file(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(change: Edit) -> Callable[[bytes], bytes]:
    """Edits the safetensors header of a state."""

    def spoil(data: bytes) -> bytes:
        header, body = state_parts(data)
        change(header)
        return state_file(header, body)

    return spoil


def said(pattern: str, replacement: str) -> Callable[[bytes], bytes]:
    """Edits what the metadata says of the state."""

    def change(header: dict[str, Any]) -> None:
        metadata = header["__metadata__"]
        changed = re.sub(pattern, replacement, metadata["lfm2_export_state"], count=1)
        assert changed != metadata["lfm2_export_state"]
        metadata["lfm2_export_state"] = changed

    return entry(change)


STATES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "no header"),
    "seven bytes": (lambda d: d[:7], "no header"),
    "header absurd": (lambda d: struct.pack("<Q", 2**63) + d[8:], "cut off"),
    "header one too long": (lambda d: struct.pack("<Q", len(d) - 7) + d[8:], "cut off"),
    "cut": (lambda d: d[:-1], "key|value|conv_state|whole number"),
    "longer": (lambda d: d + b"\0" * 8, "belong to no tensor"),
    "too large": (lambda d: d + b"\0" * (4 << 20), "at most"),
    "header no JSON": (lambda d: d[:8] + b"x" + d[9:], "not valid JSON"),
    "a bit of a tensor": (lambda d: flipped(d, len(d) - 5, 6), "checksum"),
    "no metadata": (entry(lambda h: h.pop("__metadata__")), "__metadata__: missing"),
    "another key": (entry(lambda h: h.update(__metadata__={"other": "x"})), "lfm2_export_state: missing"),
    "a tensor missing": (entry(lambda h: h.pop("key.2")), "other tensors"),
    "a tensor too many": (entry(lambda h: h.update(extra=h["key.2"])), "other tensors"),
    "a tensor renamed": (entry(lambda h: h.update({"key.3": h.pop("key.2")})), "key.2: missing"),
    "another dtype": (entry(lambda h: h["key.2"].update(dtype="F16")), "does not fit"),
    "another shape": (entry(lambda h: h["key.2"].update(shape=[1, 2, 4, 64])), "does not fit"),
    "absurd shape": (entry(lambda h: h["key.2"].update(shape=[1, 2**40, 4, 64])), "does not fit"),
    "offsets swapped": (entry(lambda h: h["key.2"]["data_offsets"].reverse()), "whole number"),
    "offsets negative": (entry(lambda h: h["key.2"].update(data_offsets=[-512, 0])), "whole number"),
    "offsets outside": (entry(lambda h: h["key.2"].update(data_offsets=[2**60, 2**60 + 512])), "whole number"),
    "offsets one": (entry(lambda h: h["key.2"].update(data_offsets=[0])), "two numbers"),
    "offsets shared": (entry(lambda h: h["key.2"].update(data_offsets=h["value.2"]["data_offsets"])), "checksum"),
    "format of the future": (said('"version":1', '"version":2'), "format version 2"),
    "another artifact": (said('"artifact":"..', '"artifact":"zz'), "another artifact"),
    "another window": (said('"window":64', '"window":65'), "saved at window 65"),
    "position past the window": (said('"position":5', '"position":65'), "position"),
    "position another": (said('"position":5', '"position":4'), "position 4 with 5 tokens"),
    "token outside": (said(r'"tokens":\[3', '"tokens":[1024'), "tokens"),
    "another token": (said(r'"tokens":\[3', '"tokens":[4'), "checksum"),
    "messages an object": (said(r'"messages":\[\]', '"messages":{}'), "messages: expected a list"),
    "a message without a role": (said(r'"messages":\[\]', '"messages":[{"content":"x"}]'), "role: missing"),
    "a message that is none": (said(r'"messages":\[\]', '"messages":[3]'), "expected an object"),
    "tools an object": (said('"tools":null', '"tools":{}'), "tools: expected a list or null"),
    "no checksum": (entry(lambda h: h["__metadata__"].update(lfm2_export_state="x")), "no checksum"),
    "metadata no JSON": (said(" ", " {"), "not valid JSON"),
}


@pytest.fixture(scope="module")
def state(small_pte: Artifact, sanitized: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("state") / "good.state"
    generate(sanitized, small_pte.folder, "--save-state", path).json()
    assert generate(sanitized, small_pte.folder, "--load-state", path).json()["position"] == 10
    return path.read_bytes()


@pytest.mark.parametrize("name", STATES)
def test_a_hostile_state_is_refused_in_one_line(name, small_pte, state, sanitized, tmp_path):
    spoil, expected = STATES[name]
    (tmp_path / "x.state").write_bytes(spoil(state))
    assert re.search(expected, generate(sanitized, small_pte.folder, "--load-state", tmp_path / "x.state").refused())


@pytest.mark.slow
def test_a_flipped_bit_of_a_state_is_refused_or_harmless(small_pte, state, sanitized, tmp_path):
    """Harmless: padding and spelling that the format leaves open, such as a space of the header."""
    length, chooser, survived = struct.unpack_from("<Q", state)[0], random.Random(22), 0
    for number in range(FLIPS // 4):
        at = chooser.randrange(8 + length) if number % 2 else chooser.randrange(len(state))
        (tmp_path / "x.state").write_bytes(flipped(state, at, chooser.randrange(8)))
        done = generate(sanitized, small_pte.folder, "--load-state", tmp_path / "x.state")
        if done.code != 0:
            done.refused()
        else:
            survived += 1
    assert survived <= 2
