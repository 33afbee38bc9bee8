"""What we stand on can be had for every Python and system we name: resolved as an installer would, nothing installed.

Markers and wheels are judged for the Python and platform asked for, not for those that run this. What is compiled must
have wheels there; what that in turn needs may come as a source.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Linux of 2018 and later (glibc 2.28), macOS 14 and later
ELSEWHERE = ("aarch64-manylinux_2_28", "aarch64-apple-darwin", "x86_64-pc-windows-msvc")
USERS_EXTRAS = ("coreml", "genai", "lora", "optimum", "qnn", "ray", "report", "score", "sign", "vision", "webgpu")
COMPILED = ("torch", "executorch", "torchao", "onnx", "onnxruntime", "safetensors", "tokenizers", "numpy", "scipy")


def resolved(python: str, platform: str, *extras: str) -> str:
    """The pinned requirements of the project there, or what the resolver says against it."""
    options = [word for extra in extras for word in ("--extra", extra)]
    options += [word for name in COMPILED for word in ("--only-binary", name)]
    line = ["uv", "pip", "compile", "--quiet", "--no-header", "--python-version", python, "--python-platform", platform]
    done = subprocess.run(
        [sys.executable, "-m", *line, *options, "pyproject.toml"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "client error (Connect)" in done.stderr or "dns error" in done.stderr:
        pytest.skip("the package index cannot be reached, and what it has is what is asked")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pythons_that_are_claimed_are_those_that_are_resolved() -> None:
    claimed = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(9, 20) if f"3.{minor}.1" in claimed] == list(PYTHONS)


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_everything_resolves_for_each_python_on_linux(python: str) -> None:
    found = resolved(python, "x86_64-manylinux_2_39", "test")
    check_dependencies(found)
    assert "\nonnxruntime-qnn==2.5.0" in found


@pytest.mark.slow
@pytest.mark.parametrize("platform", ELSEWHERE)
@pytest.mark.parametrize("python", [PYTHONS[0], PYTHONS[-1]])
def test_everything_for_users_resolves_on_other_systems(python: str, platform: str) -> None:
    found = resolved(python, platform, *USERS_EXTRAS)
    check_dependencies(found)
    assert "\nonnxruntime-qnn==" not in found  # Qualcomm's emulator is for Linux on x86-64


def test_the_users_extras_are_all_but_those_for_work_on_the_project() -> None:
    assert {*PROJECT["optional-dependencies"]} - {*USERS_EXTRAS} == {"bench", "docs", "test", "train"}


def check_dependencies(found: str) -> None:
    for line in PROJECT["dependencies"]:
        assert f"\n{canonicalize_name(Requirement(line).name)}==" in f"\n{found}"
    assert "\ntorch==2.13.0" in found
    assert "\nexecutorch==1.5.1" in found
