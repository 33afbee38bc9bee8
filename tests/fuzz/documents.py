"""Fuzz target (atheris): whatever bytes come as a manifest, bundle.json, golden.json or recipe, an Lfm2ExportError is
the worst that happens, and it is one line.

    python tests/fuzz/documents.py manifest|recipe CORPUS… [libFuzzer options]

Half of the mutations of JSON change a value somewhere in the parsed document, the other half bytes: most changed bytes
only spoil the syntax, and the checks behind it would hardly be seen. YAML gets pieces of its stranger grammar.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import atheris

with atheris.instrument_imports(include=["lfm2_export", "ruamel.yaml"]):
    from lfm2_export import recipes
    from lfm2_export.artifact.folder import parse_manifest
    from lfm2_export.bundle.contract import check_manifest, max_error
    from lfm2_export.bundle.description import describe, parse_description, web_fields
    from lfm2_export.bundle.golden_schema import check_golden
    from lfm2_export.checkpoint import nano
    from lfm2_export.checkpoint.config import read_config
    from lfm2_export.errors import Lfm2ExportError

DICTIONARY = (
    "!!int ",
    "!!float ",
    "!!bool ",
    "!!binary ",
    "&a ",
    "*a",
    "<<: ",
    "2001-01-01",
    ".nan",
    "\\U",
    "? ",
    "%YAML ",
)
NANO = read_config(nano.PATH / "config.json")
STRANGE: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1,
        2,
        1 << 31,
        1 << 63,
        10**30,
        0.5,
        1e308,
        "",
        "x",
        "\n",
        "\ud800",
        "../x",
        "/x",
        "é",
        [],
        {},
    ),
    *([1] * 9, {"a": 1}, "9" * 40, "executorch==1.5.1", "conv", "full_attention", "float32", "key.0", "conv_state.0"),
]


def read_manifest(data: bytes) -> None:
    """A manifest and what verify does with it; bundle.json and golden.json are told by their first keys."""
    if b'"kind"' in data:
        parse_description(data, "bundle.json")
    elif b'"cases"' in data:
        check_golden(data, "golden.json", NANO.vocab_size, 64, 0.06)
    else:
        manifest = parse_manifest(data, "manifest.json")
        check_manifest(manifest, "artifact")
        max_error(manifest, "artifact")
        describe("android", manifest, [7], manifest.files).to_json()
        web_fields(manifest)


def read_recipe(data: bytes) -> None:
    """A recipe, checked against nano's shape, and written out as the manifest would have it."""
    recipe = recipes.parse(data, "recipe.yaml")
    recipe.check(NANO)
    recipe.model_dump(mode="json")


READERS: dict[str, Callable[[bytes], None]] = {"manifest": read_manifest, "recipe": read_recipe}


def one_input(read: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        try:
            read(data)
        except Lfm2ExportError as error:
            if not str(error).isprintable():
                raise RuntimeError(f"more than one line: {str(error)!r}") from error

    return run


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's custom mutator."""
    dice = random.Random(seed)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) and dice.random() < 0.2:
        at = dice.randint(0, len(data))
        return (data[:at] + dice.choice(DICTIONARY).encode() + data[at:])[:max_size]
    if not isinstance(document, dict) or dice.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    for _ in range(dice.randint(1, 3)):
        _change(document, dice)
    return json.dumps(document).encode()[:max_size]


def _change(document: Any, dice: random.Random) -> None:
    """Replaces, removes, doubles or renames one value, as deep as chance leads."""
    node = document
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            return
        place = dice.choice(places)
        if not isinstance(node[place], dict | list) or not node[place] or dice.random() < 0.2:
            break
        node = node[place]
    how = dice.randrange(5)
    if how == 0:
        del node[place]
    elif how == 1 and isinstance(node, dict):
        node[str(dice.choice(STRANGE))] = node.pop(place)
    elif how == 2 and isinstance(node, list):
        node.append(copy.deepcopy(node[place]))
    elif how == 3 and type(node[place]) is int:
        node[place] += dice.choice((-1, 1, 1 << 16))
    else:
        node[place] = copy.deepcopy(dice.choice(STRANGE))  # it may be changed in its turn


if __name__ == "__main__":
    what = sys.argv.pop(1)
    atheris.Setup(sys.argv, one_input(READERS[what]), custom_mutator=mutate)
    atheris.Fuzz()
