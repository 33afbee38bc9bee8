"""The shell commands that make an artifact again and prove it again, from what its manifest says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from lfm2_export import recipes
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.nano import EMBEDDED


def commands(manifest: Manifest, effort: str = "full") -> list[str]:
    """Packages, export, proof. Deviations from the built-in recipe of that name are spelled as `--set`."""
    quickly = ["--effort", "quick"] if effort == "quick" else []
    source, made = manifest.source, manifest.recipe
    packages = " ".join(shlex.quote(f"{name}=={version}") for name, version in _installable(manifest))
    name = str(made["name"])
    output = f"out/{source.name.rpartition('/')[2]}-{name}"
    local = source.name not in EMBEDDED and "/" not in source.name
    export = ["lfm2-export", "export", f"./{source.name}" if local else source.name]
    export += ["--revision", source.revision] if source.revision else []
    lines = [f"pip install {packages}"] if packages else []
    if name in recipes.names():
        export += ["--recipe", name]
        built_in = recipes.load(name).model_dump(mode="json")
        for key, value in _changes(built_in, made):
            export += ["--set", f"{key}={json.dumps(value)}"]
    else:  # JSON is YAML
        lines.append(f"printf '%s\\n' {shlex.quote(json.dumps(made))} > {shlex.quote(name + '.yaml')}")
        export += ["--recipe", f"{name}.yaml"]
    lines.append(shlex.join([*export, *quickly, "--output", output]))
    proof = ["lfm2-export", "parity", output, *(["--checkpoint", f"./{source.name}"] if local else [])]
    return [*lines, shlex.join([*proof, *quickly, "--report", "report.html"])]


def _installable(manifest: Manifest) -> list[tuple[str, str]]:
    """Qualcomm's own libraries are no package; a local label (torch's +cpu) is its index's, not the version's."""
    return [(name, text.partition("+")[0]) for name, text in manifest.versions.items() if name != "qnn"]


def _changes(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """`key.path`, value for everything in `new` that `old` has otherwise."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            yield from _changes(old.get(key), value, f"{at}.{key}" if at else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _changes(before, after, f"{at}.{number}")
    elif old != new:
        yield at, new
