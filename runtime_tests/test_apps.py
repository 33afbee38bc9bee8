"""The code that docs/apps.md offers: compiled, and run where the runtime is here, on artifacts of nano."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import android_tools
import javascript
import numpy as np
import pytest
from documents import ROOT, blocks
from runner_program import need_runner

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.tokenizer import ChatTokenizer

PAGE = ROOT / "docs" / "apps.md"
ANSWER = "The sky is blue."
# the page's folders, and the artifacts of other tests that stand for them
FOLDERS = {
    "out/phone": ("xnnpack-int8", "explicit", "cache=float32"),
    "out/server": ("onnx-int8", "explicit"),
    "out/web": ("onnx-int8", "explicit"),
}
LIBRARIES = ("executorch", "executorch_kernels_optimized", "executorch_kernels_quantized", "executorch_backend_xnnpack")

pytestmark = pytest.mark.slow


def code(language: str, number: int = 0) -> str:
    """A block of the page."""
    return [block.text for block in blocks(PAGE) if block.language == language][number]


@pytest.fixture
def here(make_artifact: Callable[..., Artifact], tmp_path: Path) -> Path:
    """A folder in which the page's artifacts lie."""
    (tmp_path / "out").mkdir()
    for name, kind in FOLDERS.items():
        (tmp_path / name).symlink_to(make_artifact(*kind).folder)
    return tmp_path


def test_kotlin_compiles_for_android(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    kit = android_tools.compiled_kit(tmp_path_factory)
    for number, name in enumerate(("Chat", "Assistant", "Conversation")):
        (tmp_path / f"{name}.kt").write_text(code("kotlin", number))
    classpath = [kit, android_tools.ANDROID_JAR, android_tools.EXECUTORCH_JAR, android_tools.COROUTINES_JAR]
    android_tools.compile_kotlin(tmp_path / "classes", sorted(tmp_path.glob("*.kt")), classpath, "-no-jdk")
    classes = {path.name for path in (tmp_path / "classes").iterdir()}
    assert {"ChatKt.class", "Assistant.class", "Conversation.class"} <= classes


@pytest.mark.parametrize("number", [0, 1], ids=["genai", "executorch"])
def test_python_answers(number: int, here: Path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code("python", number)],
        cwd=here, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == ANSWER


def test_javascript_answers(here: Path):
    javascript.need()
    (here / "node_modules").symlink_to(javascript.NODE_MODULES)
    (here / "app.mjs").write_text(code("js"))
    assert javascript.execute(here / "app.mjs").splitlines()[-1].strip() == ANSWER


def test_cpp_gives_pythons_tokens(make_artifact: Callable[..., Artifact], tmp_path: Path):
    need_runner()
    artifact = make_artifact(*FOLDERS["out/phone"])
    (tmp_path / "app.cpp").write_text(code("cpp"))
    _compile(
        tmp_path / "app",
        [tmp_path / "app.cpp", *(ROOT / "runner" / f"{name}.cpp" for name in ("operators", "attention"))],
    )
    prompt = [1, 6, 40, 73, 200, 31]
    words = [tmp_path / "app", artifact.folder / "model.pte", *map(str, prompt)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
    expected = [int(np.argmax(session.prefill(prompt)))]
    while len(expected) < 16:
        expected.append(int(np.argmax(session.decode(expected[-1]))))
    assert [int(word) for word in done.stdout.split()] == expected


def _compile(output: Path, sources: list[Path]) -> None:
    """As runner/build.sh does, but quicker to compile than to run."""
    from importlib.util import find_spec

    places = find_spec("executorch").submodule_search_locations
    wheel = Path(places[0])
    flags = ["-std=c++17", "-O1", "-DC10_USING_CUSTOM_GENERATED_MACROS", f"-I{ROOT / 'runner'}"]
    flags += [f"-I{wheel / 'include' / more}" for more in ("", "executorch/runtime/core/portable_type/c10")]
    linked = [f"-L{wheel / 'lib'}", f"-Wl,-rpath,{wheel / 'lib'}", "-Wl,--no-as-needed"]
    linked += [f"-l{name}" for name in (*LIBRARIES, "executorch_threadpool")]
    command = ["g++", *flags, *sources, "-o", output, *linked, "-Wl,--allow-shlib-undefined", "-lpthread"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_prompt_is_the_templates(nano):
    tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    prompt = tokenizer.render([{"role": "user", "content": "What color is the sky?"}])
    shown = prompt.replace("\n", "\\n")
    assert shown in code("python", 1)
    for language, number, question in (("kotlin", 1, "$question"), ("swift", 0, r"\(question)")):
        assert shown.replace("What color is the sky?", question) in code(language, number)
