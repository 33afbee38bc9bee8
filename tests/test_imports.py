"""The modules of the package import one another in one direction, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import lfm2_export

PACKAGE = Path(lfm2_export.__file__).parent

# From the ground up: a package or module imports only from the lines above its own, and never from its own line.
LAYERS = (
    ("errors", "progress"),
    ("extras", "files", "strict_yaml"),
    ("checkpoint",),
    ("artifact", "model"),
    ("graph", "qualcomm", "static_calls"),
    ("quantize",),
    ("recipes",),
    ("targets", "runtimes"),
    ("images",),
    ("bundle", "chat", "environment", "tune"),
    ("evaluate",),
    ("bench",),
    ("parity",),
    ("device", "pipeline", "plots"),
    ("report",),
    ("matrix",),
    ("cli",),
    ("integrations", "__main__"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


class Import(NamedTuple):
    """One import of a module of this package by another; `lfm2_export` itself is named ""."""

    by: str
    of: str
    for_types: bool  # under `if TYPE_CHECKING:`, so never executed


def name_of(path: Path) -> str:
    """A module's name below the package: "parity.report", or "parity" for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_in(by: str, node: ast.AST, for_types: bool = False) -> Iterator[Import]:
    """Every import below `node`, those inside functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from imports_in(by, ast.Module([statement], []), for_types=True)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                if alias.name.partition(".")[0] == PACKAGE.name:
                    yield Import(by, alias.name.partition(".")[2], for_types)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{by}: a relative import"
            root, _, module = (child.module or "").partition(".")
            for alias in child.names if root == PACKAGE.name else ():
                deeper = f"{module}.{alias.name}".lstrip(".")
                yield Import(by, deeper if deeper in MODULES else module, for_types)
        else:
            yield from imports_in(by, child, for_types)


def circle(imports: Iterable[Import]) -> list[str]:
    """The modules of one circle, from a module back to itself; empty if there is none."""
    graph: dict[str, set[str]] = {}
    for each in imports:
        graph.setdefault(each.by, set()).add(each.of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [*error.args[1]]
    return []


def against(imports: Iterable[Import]) -> list[str]:
    """Imports from a package's own line or from above it. The package itself ("", for its version) is anybody's."""
    packages = ((each, each.by.partition(".")[0], each.of.partition(".")[0]) for each in imports if each.by and each.of)
    return [f"{each.by} imports {each.of}" for each, by, of in packages if by != of and RANK[of] >= RANK[by]]


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return [each for name, path in MODULES.items() for each in imports_in(name, ast.parse(path.read_bytes()))]


def test_every_package_has_its_place_in_the_layers():
    assert {name.partition(".")[0] for name in MODULES if name} == set(RANK)


def test_no_import_is_a_circle(imports):
    assert circle(each for each in imports if not each.for_types) == []


def test_no_import_for_types_closes_a_circle(imports):
    assert circle(imports) == []


def test_imports_go_one_way(imports):
    assert len(imports) > 500
    assert against(imports) == []


def test_a_target_and_a_runtime_know_nothing_of_each_other():
    assert RANK["targets"] == RANK["runtimes"]
    assert against([Import("targets.onnx", "runtimes.onnxruntime", False)])
    assert against([Import("runtimes.onnxruntime", "targets.onnx", True)])


def test_what_these_tests_look_for_is_found():
    source = """
from typing import TYPE_CHECKING
from lfm2_export import __version__, recipes
from lfm2_export.parity.report import judge
if TYPE_CHECKING:
    import lfm2_export.pipeline
def later():
    from lfm2_export.cli import console
"""
    found = [*imports_in("quantize.apply", ast.parse(source))]
    assert found == [
        Import("quantize.apply", "", False),
        Import("quantize.apply", "recipes", False),
        Import("quantize.apply", "parity.report", False),
        Import("quantize.apply", "pipeline", True),
        Import("quantize.apply", "cli.console", False),
    ]
    assert len(against(found)) == 4
    back = Import("recipes", "quantize.apply", False)
    assert set(circle([*found, back])) == {"recipes", "quantize.apply"}
    assert circle(found) == []
