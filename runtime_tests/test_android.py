"""Android's library and app without a phone: compiled, tested on the JVM, held against Python and the real `.pte`.

Python lends Kotlin the runtime: the library's own session, tokenizer, template and sampler drive ExecuTorch's Python
bindings, over state tensors that both sides have mapped into memory.
"""

from __future__ import annotations

import json
import random
import re
import zipfile
from functools import cache

import android_bundle
import android_tools
import drafted_text
import numpy as np
import pytest
from android_cases import CHATS, CONVERSATIONS, TOOL, texts
from android_tools import APP, KIT, PROJECT, Refused
from stock_runner_process import StockRunner

from lfm2_export import runtimes
from lfm2_export.bundle.pack import bundle
from lfm2_export.bundle.verify import verify
from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.drafts import Lookup
from lfm2_export.chat.sampling import MinPSampler
from lfm2_export.checkpoint.template import ChatTemplate
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.model.load import open_checkpoint
from lfm2_export.runtimes.session import Session

LIMIT = 24
EITHER_FORM = pytest.mark.parametrize("form", ["explicit", "resident"])
EACH_MODEL = pytest.mark.parametrize("source", ["nano", "nano-lfm3"])

pytestmark = pytest.mark.slow  # Kotlin is compiled first


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return android_tools.compiled_kit(tmp_path_factory)


@pytest.fixture(scope="module")
def classpath(kit, tmp_path_factory):
    """To run the library's unit tests, and its parts for Python, on the JVM."""
    output = tmp_path_factory.mktemp("android") / "tests"
    libraries = [kit, android_tools.JSON_JAR, *android_tools.JUNIT_JARS, android_tools.EXECUTORCH_JAR]
    libraries.append(android_tools.COROUTINES_JAR)
    sources = [KIT / "src/test/kotlin", PROJECT / "runtime_tests/android/CrossCheck.kt"]
    android_tools.compile_kotlin(output, sources, libraries, f"-Xfriend-paths={kit}")
    return [output, *libraries, android_tools.KOTLIN_STDLIB]


@pytest.fixture(scope="module")
def kotlin(classpath):
    process = android_tools.CrossCheck(classpath)
    yield process
    process.close()


@pytest.fixture(scope="module")
def tokenizer(nano):
    return ChatTokenizer.load(nano.folder, nano.config)


@pytest.fixture(scope="module")
def bundled(make_artifact):
    """(form, model) → the artifact, the files of its bundle, and its tokenizer."""

    @cache
    def make(form, source="nano"):
        artifact = make_artifact("xnnpack-int8", form, source=source)
        tokenizer = ChatTokenizer.load(artifact.folder, open_checkpoint(source).config)
        return artifact, android_bundle.bundle_files(artifact, tokenizer), tokenizer

    return make


def test_every_source_compiles_for_android(kit, tmp_path_factory):
    app = android_tools.compiled_app(tmp_path_factory)
    for module, classes in ((KIT, kit), (APP, app)):
        packages = {path.parent.name for path in (module / "src/main/kotlin").rglob("*.kt")}
        assert {path.parent.name for path in classes.rglob("*.class")} == packages
    assert (app / "org/lfm2export/demo/screen/MainActivity.class").is_file()


def test_whatever_the_library_shows_is_documented():
    shown = re.compile(r"^(?!private|internal)(?:\w+ )*(?:class|interface|object|fun|val) [\w.]+", re.MULTILINE)
    found = 0
    for path in (KIT / "src/main/kotlin").rglob("*.kt"):
        source = path.read_text()
        for match in shown.finditer(source):
            found += 1
            assert source[: match.start()].endswith("*/\n"), f"{path.name}: {match[0]}"
    assert found > 30


def test_unit_tests_pass_on_the_jvm(classpath, capsys):
    folder = classpath[0]
    tests = [str(path.relative_to(folder).with_suffix("")).replace("/", ".") for path in folder.rglob("*Test.class")]
    report = android_tools.java(classpath, "org.junit.runner.JUnitCore", *sorted(tests))
    count = re.search(r"OK \((\d+) tests\)", report)
    assert count, report[-3000:]
    written = sum(path.read_text().count("@Test") for path in (KIT / "src/test/kotlin").rglob("*.kt"))
    assert int(count[1]) == written
    with capsys.disabled():
        print(f"\nAndroid library: {count[1]} unit tests in {len(tests)} classes passed on the JVM")


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("tools", [None, [TOOL], [json.dumps(TOOL), TOOL, {}], [{"a": 1}, "plain text"]])
def test_template_is_the_checkpoints_to_the_byte(tools, generation, kotlin, tokenizer):
    for messages in CHATS:
        expected = tokenizer.render(messages, tools, generation)
        more = {"tools": tools} if tools else {}
        rendered = kotlin("render", bos="<|startoftext|>", messages=messages, generation=generation, **more)
        assert rendered == expected


def test_tools_are_written_as_jinja_writes_them(kotlin):
    numbers = random.Random(5)
    values = [10 ** numbers.uniform(-320, 308) * numbers.choice([1, -1]) for _ in range(500)]
    values += [float(numbers.randrange(1 << 53)) for _ in range(100)] + [2.0**power for power in range(-1074, 1024, 7)]
    documents = [{"value": value, "text": chr(at)} for at, value in enumerate(values)] + [TOOL, [], {"": [[]]}]
    template = ChatTemplate("{{ value | default(0) | tojson }}", "test")
    assert kotlin("json", values=documents) == [template.render({"value": document}) for document in documents]


def test_tokenizer_is_the_checkpoints(nano, kotlin, tokenizer):
    # what later versions of Unicode added is a letter to one side only
    asked = texts(unknown=set(kotlin("unassigned")))
    path = str(nano.folder / "tokenizer.json")
    encoded = kotlin("encode", tokenizer=path, texts=asked)
    differing = [text for text, ids in zip(asked, encoded, strict=True) if ids != tokenizer.encode(text)]
    assert not differing
    for ids in encoded[:200]:
        assert "".join(kotlin("decode", tokenizer=path, ids=ids)) == tokenizer.decode(ids, False)


@pytest.mark.parametrize("settings", [(0.3, 0.15, 1.05), (1.0, 0.0, 1.0), (0.7, 0.5, 2.0)])
def test_sampler_weighs_tokens_as_python_does(settings, kotlin):
    names = ("temperature", "min_p", "repetition_penalty")
    sampler = MinPSampler(**dict(zip(names, settings, strict=True)))
    sampler._random = choice = _Recorder()
    for seed in range(5):
        logits = np.random.default_rng(seed).normal(0, 3, 200).astype(np.float32)
        seen = [1, 5, 5, int(logits.argmax())]
        sampler(logits, seen)
        job = dict(zip(names, settings, strict=True))
        found = kotlin("weights", logits=[float(value) for value in logits], seen=seen, **job)
        np.testing.assert_allclose(found, choice.weights, rtol=1e-12, atol=0)


class _Recorder:
    """Stands in for numpy's generator and keeps the probabilities it is given."""

    def choice(self, size, p):
        self.weights = p
        return 0


@EITHER_FORM
@EACH_MODEL
def test_bundle_made_by_python_is_read_and_verified(form, source, bundled, kotlin, tmp_path):
    artifact, files, _ = bundled(form, source)
    android_bundle.write_archive(files, tmp_path / "bundle.zip")
    target = tmp_path / "unpacked"
    kotlin("unpack", archive=str(tmp_path / "bundle.zip"), target=str(target))
    assert {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()} == files
    state = sum(spec.written for spec in artifact.manifest.methods[0].inputs)
    assert kotlin("open", folder=str(target)) == {"form": form, "window": artifact.manifest.window, "state": state}


def test_the_command_bundles_what_the_app_reads_of_lfm3(bundled, kotlin, tmp_path):
    artifact, _, _ = bundled("explicit", "nano-lfm3")
    made = bundle(artifact, "android", tmp_path / "bundle.zip")
    verify(made.path)
    kotlin("unpack", archive=str(made.path), target=str(tmp_path / "unpacked"))
    kinds = artifact.manifest.source.config["layer_types"]
    state = sum(1 if kind == "conv" else 2 for kind in kinds)
    found = kotlin("open", folder=str(tmp_path / "unpacked"))
    assert found == {"form": "explicit", "window": artifact.manifest.window, "state": state}


def test_altered_archives_are_refused(bundled, kotlin, tmp_path):
    _, files, _ = bundled("explicit")
    archive, target = tmp_path / "bundle.zip", tmp_path / "unpacked"
    android_bundle.write_archive(files, archive)
    sound = archive.read_bytes()
    pick = random.Random(7)
    refused = 0
    for _ in range(300):
        bent = bytearray(sound)
        # most flips near the beginning and the end, where headers and the small files are
        start, end = pick.choice([(0, 8000), (len(sound) - 60000, len(sound)), (0, len(sound))])
        bent[pick.randrange(start, end)] ^= 1 << pick.randrange(8)
        archive.write_bytes(bent)
        try:
            kotlin("unpack", archive=str(archive), target=str(target))
            kotlin("open", folder=str(target))
        except Refused:
            refused += 1
        else:  # a byte that nothing depends on: a date, the directory at the end
            unpacked = {name: (target / name).read_bytes() for name in files if name != "bundle.json"}
            assert unpacked == {name: content for name, content in files.items() if name != "bundle.json"}
    assert refused > 150


def test_a_16_bit_cache_is_refused_with_the_remedy(make_artifact, tokenizer, kotlin, tmp_path):
    files = android_bundle.bundle_files(make_artifact("xnnpack-int8", "explicit", "cache=bfloat16"), tokenizer)
    with pytest.raises(Refused, match="cache=float32"):
        kotlin("open", folder=str(android_bundle.write_folder(files, tmp_path)))


@pytest.fixture
def runtime(tmp_path):
    """ExecuTorch for Kotlin: (artifact) → answers to its calls, on state tensors mapped from the files it made."""

    def serve(artifact):
        session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
        tensors = []

        def answer(call):
            if artifact.manifest.form == "explicit" and not tensors:
                tensors.extend(_mapped(artifact, tmp_path))
            import torch

            inputs = [torch.tensor([call["tokens"]]), torch.tensor([call["position"]]), *tensors]
            outputs = session._module.run(call["method"], inputs)
            (tmp_path / "outputs").write_bytes(b"".join(each.numpy().tobytes() for each in outputs))
            return {"sizes": [each.numel() for each in outputs]}

        return answer

    return serve


def _mapped(artifact, folder):
    import torch

    for spec in artifact.manifest.methods[0].inputs:
        if spec.written:
            memory = np.memmap(folder / spec.name, dtype=spec.dtype, mode="r+", shape=tuple(spec.shape))
            yield torch.from_numpy(memory)


@EITHER_FORM
@EACH_MODEL
def test_parity_check_passes_on_the_real_program(form, source, bundled, kotlin, runtime, tmp_path):
    artifact, files, _ = bundled(form, source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    report = kotlin("parity", runtime(artifact), folder=str(folder), shared=str(tmp_path))
    assert report["passed"], report["lines"]
    assert report["error"] < 1e-6  # the same runtime as the golden cases'
    assert report["same"] == report["steps"] > 20


def test_parity_check_notices_another_model(bundled, make_artifact, kotlin, runtime, tmp_path):
    _, files, _ = bundled("explicit")
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    other = make_artifact("xnnpack-int4", "explicit")
    report = kotlin("parity", runtime(other), folder=str(folder), shared=str(tmp_path))
    assert not report["passed"]
    assert "FAIL" in report["lines"][0]


@EACH_MODEL
def test_explicit_chat_is_pythons(source, bundled, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit", source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT}
    found = kotlin("chat", runtime(artifact), conversations=CONVERSATIONS * 2, **job)
    assert found[: len(CONVERSATIONS)] == found[len(CONVERSATIONS) :]  # a new conversation is the first one again
    for turns, replies in zip(CONVERSATIONS, found, strict=False):
        session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
        conversation = Conversation(session, tokenizer)
        for turn, reply in zip(turns, replies, strict=True):
            assert reply["text"] == "".join(conversation.reply(turn, LIMIT))
            assert reply["fed"] == conversation.speed.prompt_tokens


@EACH_MODEL
def test_explicit_chat_says_the_same_with_drafts(source, bundled, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit", source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    turns = ["My name is Anna.", *["What is my name?"] * 3]
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT, "drafting": True}
    (found,) = kotlin("chat", runtime(artifact), conversations=[turns], **job)
    session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
    for source in (None, Lookup()):
        conversation = Conversation(session, tokenizer, source=source)
        for turn, reply in zip(turns, found, strict=True):
            assert reply["text"] == "".join(conversation.reply(turn, LIMIT))
            if source is not None:
                speed = conversation.speed
                assert (reply["drafted"], reply["accepted"]) == (speed.drafted_tokens, speed.accepted_tokens)
                assert reply["fed"] == speed.prompt_tokens
    assert found[-1]["accepted"] > 0


def test_a_full_window_costs_the_turns_that_it_costs_in_python(bundled, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit")
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    # no turn twice: Python would go back to where the same was said before
    turns = [f"{number}. " + "My name is Anna. " * 6 + "What is my name?" for number in range(14)]
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT, "system": "Be brief.", "on_full": "FORGET"}
    (found,) = kotlin("chat", runtime(artifact), conversations=[turns], **job)
    session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
    system = {"role": "system", "content": "Be brief."}
    conversation = Conversation(session, tokenizer, [system], on_full="forget")
    fed = 0
    for turn, reply in zip(turns, found, strict=True):
        assert reply["text"] == "".join(conversation.reply(turn, LIMIT))
        speed = conversation.speed
        assert (reply["fed"], reply["forgotten"]) == (speed.prompt_tokens, speed.forgotten_turns)
        fed += reply["fed"]
    assert fed > 3 * artifact.manifest.window
    assert sum(reply["forgotten"] > 0 for reply in found) > 2


@EACH_MODEL
def test_state_files_are_pythons_to_the_byte_and_go_on(source, bundled, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit", source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    theirs, ours = tmp_path / "python.state", tmp_path / "kotlin.state"
    session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
    conversation = Conversation(session, tokenizer, tools=[TOOL])
    said = ["".join(conversation.reply("My name is 🙂 Anna.", LIMIT))]
    conversation.save(theirs, artifact)
    said.append("".join(conversation.reply("What is my name?", LIMIT)))
    turns = ["My name is 🙂 Anna.", {"save": str(ours)}, "Hello", {"load": str(theirs)}, "What is my name?"]
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT, "tools": [TOOL]}
    (found,) = kotlin("chat", runtime(artifact), conversations=[turns], **job)
    assert ours.read_bytes() == theirs.read_bytes()
    assert [found[0]["text"], found[-1]["text"]] == said
    assert found[-1]["fed"] == conversation.speed.prompt_tokens  # no more than what is new


def test_state_files_of_others_are_refused(bundled, make_artifact, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit")
    other = make_artifact("xnnpack-int4", "explicit")
    session = runtimes.find("executorch").open_session(other.folder, other.manifest)
    conversation = Conversation(session, tokenizer)
    list(conversation.reply("Hello", LIMIT))
    conversation.save(tmp_path / "other.state", other)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT}
    with pytest.raises(Refused, match="another model"):
        kotlin("chat", runtime(artifact), conversations=[[{"load": str(tmp_path / "other.state")}]], **job)


def test_drafts_are_pythons(kotlin):
    text = drafted_text.text()
    assert kotlin("drafts", text=text, most=drafted_text.MOST) == drafted_text.expected(text, Session.draft_cost)


@EACH_MODEL
def test_resident_chat_goes_on_through_the_stock_runner(source, bundled, kotlin, tmp_path):
    """`TextLLMRunner` is what Android's LlmModule wraps. Its turns are those of the same file, fed whole each time."""
    artifact, files, tokenizer = bundled("resident", source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    runner = StockRunner(folder / "model.pte", folder / "tokenizer.json")
    prompts = []

    def answer(call):
        prompts.extend([call["generate"]] if "generate" in call else [])
        return runner(call)

    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT}
    found = kotlin("chat", answer, conversations=CONVERSATIONS, **job)
    runner.close()
    assert sum(prompt.startswith("<|im_end|>") for prompt in prompts) >= 3  # turns that went on from the state
    for turns, replies in zip(CONVERSATIONS, found, strict=True):
        messages = []
        for turn, reply in zip(turns, replies, strict=True):
            messages.append({"role": "user", "content": turn})
            session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
            logits = session.prefill(tokenizer.encode(tokenizer.render(messages)))
            expected = []
            while (token := int(np.argmax(logits))) not in tokenizer.eos_ids and len(expected) < LIMIT:
                expected.append(token)
                logits = session.decode(token)
            assert reply["text"] == tokenizer.decode(expected, False)
            messages.append({"role": "assistant", "content": reply["text"]})


def test_one_version_of_each_library_throughout():
    pinned = re.search(r'"executorch==([\d.]+)"', (PROJECT / "pyproject.toml").read_text())[1]
    constant = (KIT / "src/main/kotlin/org/lfm2export/kit/device/ExecuTorch.kt").read_text()
    assert re.search(r'EXECUTORCH_VERSION = "([\d.]+)"', constant)[1] == pinned
    gradle = (KIT / "build.gradle.kts").read_text()
    assert re.findall(r"executorch-android:([\d.]+)", gradle) == [pinned]
    with zipfile.ZipFile(android_tools.COROUTINES_JAR) as coroutines:
        version = coroutines.read("META-INF/kotlinx_coroutines_core.version").decode()
    assert re.findall(r"kotlinx-coroutines-core:([\d.]+)", gradle) == [version]
