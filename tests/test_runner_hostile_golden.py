"""Damaged and forged golden documents given to lfm2_runner, built with sanitizers: one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from runner_program import execute

Edit = Callable[[dict[str, Any]], object]


def case(change: Edit) -> Callable[[dict[str, Any]], str]:
    def spoil(golden: dict[str, Any]) -> str:
        change(golden)
        return json.dumps(golden)

    return spoil


GOLDEN: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "empty": (lambda g: "", "not valid JSON"),
    "cut": (lambda g: json.dumps(g)[:-9], "not valid JSON"),
    "a list": (lambda g: "[]", "expected an object"),
    "nests": (lambda g: '{"cases":' + "[" * 300_000, "nested too deeply"),
    "no cases": (case(lambda g: g.update(cases=[])), "nothing would be proven"),
    "cases a text": (case(lambda g: g.update(cases="all")), "expected a list"),
    "no error allowed": (case(lambda g: g.pop("max_error")), "max_error: missing"),
    "any error allowed": (case(lambda g: g.update(max_error=1e9)), "between 0 and 1"),
    "no error possible": (case(lambda g: g.update(max_error=-1)), "between 0 and 1"),
    "infinite": (lambda g: json.dumps(g).replace('"max_error": 0.06', '"max_error": 1e999'), "not valid JSON"),
    "no prompt": (case(lambda g: g["cases"][0].update(prompt=[])), "without a prompt"),
    "no steps": (case(lambda g: g["cases"][0].update(steps=[])), "without steps"),
    "prompt outside": (case(lambda g: g["cases"][0].update(prompt=[1024])), "prompt"),
    "prompt negative": (case(lambda g: g["cases"][0].update(prompt=[-1])), "prompt"),
    "prompt too long": (case(lambda g: g["cases"][0].update(prompt=[1] * 65)), "do not fit the window"),
    "top outside": (case(lambda g: g["cases"][0]["steps"][0].update(top=[2**31] * 8)), "top"),
    "top short": (case(lambda g: g["cases"][0]["steps"][0].update(top=[1])), "at least two tokens"),
    "logits missing": (case(lambda g: g["cases"][0]["steps"][0].pop("logits")), "logits: missing"),
    "logits texts": (case(lambda g: g["cases"][0]["steps"][0].update(logits=["1"] * 8)), "expected numbers"),
    "scale zero": (case(lambda g: g["cases"][0]["steps"][0].update(scale=0)), "scale above 0"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_hostile_golden_document_is_refused_in_one_line(name, small_pte, golden, sanitized, tmp_path):
    spoil, expected = GOLDEN[name]
    (tmp_path / "golden.json").write_text(spoil(json.loads(json.dumps(golden))))
    assert expected in execute(sanitized, "golden", small_pte.folder, tmp_path / "golden.json").refused()
