"""Fixtures of the parity ladder: every artifact is made once per run, from the embedded nano model."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import cache

import android_bundle
import android_tools
import javascript
import numpy as np
import pytest
import torch
from artifacts import ARTIFACTS, WINDOW, need_qnn
from filelock import FileLock
from web_chats import CHATS, LENGTHS, greedy_reply

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact, open_artifact
from lfm2_export.bundle.pack import bundle
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.quantize.apply import quantize
from lfm2_export.quantize.unpack import unpack
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes.eager import EagerSession

Make = Callable[..., Artifact]


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Make:
    """(recipe, form, more overrides) → an unproven artifact of nano, only to be read: lowered once for all workers."""
    own = tmp_path_factory.getbasetemp()
    shared = (own if worker_id == "master" else own.parent) / "artifacts"

    @cache
    def make(recipe: str, form: str, *overrides: str, source: str = "nano") -> Artifact:
        changes = [f"form={form}", f"window={WINDOW}", *overrides]
        place = shared / hashlib.sha256(repr((source, recipe, changes)).encode()).hexdigest()
        place.mkdir(parents=True, exist_ok=True)
        output = place / f"{recipe}-{form}"
        with FileLock(place / "lock"):
            if output.exists():
                return open_artifact(output)
            return export(source, recipe, output, overrides=changes, verify=False)[0]

    return make


@pytest.fixture(params=ARTIFACTS, ids="-".join)
def artifact(request: pytest.FixtureRequest, make_artifact: Make) -> Artifact:
    if request.param[0].startswith("qnn"):
        need_qnn()
    return make_artifact(*request.param)


@pytest.fixture(scope="session")
def nano() -> Checkpoint:
    return open_checkpoint("nano")


@pytest.fixture(scope="session")
def quantized_nano(nano: Checkpoint) -> Callable[[Artifact], Decoder]:
    """The eager model that an artifact must equal."""

    @cache
    def make(rules: str) -> Decoder:
        recipe = Recipe.model_validate_json(rules)
        return unpack(quantize(load_decoder(nano), recipe.quantization, recipe.cache))

    return lambda artifact: make(Recipe.model_validate(artifact.manifest.recipe).model_dump_json())


@pytest.fixture(scope="session")
def tokenizer(nano):
    """nano's."""
    return ChatTokenizer.load(nano.folder, nano.config)


@pytest.fixture(scope="session")
def eager_replies(nano, tokenizer):
    """Of the fp32 model in eager PyTorch."""
    session = EagerSession(load_decoder(nano), WINDOW)
    return [greedy_reply(session, tokenizer, messages) for messages in CHATS]


@pytest.fixture(scope="session")
def long_prompts(tokenizer):
    """Of each length, random but for a question at the end where there is room for it."""
    drawn, question = random.Random(0), tokenizer.encode(tokenizer.render(CHATS[0]))
    rest = [length - len(question) if length > len(question) else length for length in LENGTHS]
    return [
        [drawn.randrange(10, 1000) for _ in range(count)] + (question if count < length else [])
        for count, length in zip(rest, LENGTHS, strict=True)
    ]


@pytest.fixture(scope="session")
def demo(make_artifact, tmp_path_factory):
    """(recipe, model) → a web bundle, only to be read."""
    javascript.need()

    @cache
    def make(recipe, source="nano"):
        artifact, output = make_artifact(recipe, "explicit", source=source), tmp_path_factory.mktemp("web") / recipe
        return bundle(artifact, "web", output, node_modules=javascript.NODE_MODULES).path

    return make


@pytest.fixture(scope="session")
def kit(tmp_path_factory):
    """The Android library's classes."""
    return android_tools.compiled_kit(tmp_path_factory)


@pytest.fixture(scope="session")
def classpath(tmp_path_factory):
    """To run the library's unit tests, and its parts for Python, on the JVM."""
    return android_tools.classpath_of_tests(tmp_path_factory)


@pytest.fixture(scope="module")
def kotlin(classpath):
    """The library in a process of its own."""
    process = android_tools.CrossCheck(classpath)
    yield process
    process.close()


@pytest.fixture(scope="session")
def bundled(make_artifact):
    """(form, model) → the artifact, the files of its bundle, and its tokenizer."""

    @cache
    def make(form, source="nano"):
        artifact = make_artifact("xnnpack-int8", form, source=source)
        tokenizer = ChatTokenizer.load(artifact.folder, open_checkpoint(source).config)
        return artifact, android_bundle.bundle_files(artifact, tokenizer), tokenizer

    return make


@pytest.fixture
def runtime(tmp_path):
    """ExecuTorch for Kotlin: (artifact) → answers to its calls, on state tensors mapped from the files it made."""

    def serve(artifact):
        session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
        tensors = []

        def answer(call):
            if artifact.manifest.form == "explicit" and not tensors:
                tensors.extend(_mapped(artifact, tmp_path))
            inputs = [torch.tensor([call["tokens"]]), torch.tensor([call["position"]]), *tensors]
            outputs = session._module.run(call["method"], inputs)
            (tmp_path / "outputs").write_bytes(b"".join(each.numpy().tobytes() for each in outputs))
            return {"sizes": [each.numel() for each in outputs]}

        return answer

    return serve


def _mapped(artifact, folder):
    for spec in artifact.manifest.methods[0].inputs:
        if spec.written:
            memory = np.memmap(folder / spec.name, dtype=spec.dtype, mode="r+", shape=tuple(spec.shape))
            yield torch.from_numpy(memory)
