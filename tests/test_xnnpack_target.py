"""The XNNPACK target and the ExecuTorch sessions against eager PyTorch: numbers, state laws, delegation, same bytes.

Lowering is what costs time here, so each kind of artifact is made once and shared by every test that can use it.
"""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from lfm2_export import recipes
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import ArtifactError, LoweringError, RecipeError, UsageError, WindowExceededError
from lfm2_export.generation import generate
from lfm2_export.model.decoder import Decoder
from lfm2_export.quantize.apply import quantize
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes import _text_llm_runner
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.executorch import open_session
from lfm2_export.runtimes.session import Session, Snapshot
from lfm2_export.targets import Lowered, xnnpack
from lfm2_export.targets._xnnpack import delegation

WINDOW, MAX_TOKENS = 40, 16
FP32_ERROR = 2e-5  # measured 1e-6 to 5e-6
FLIP_ERROR = 0.15  # int8 activations rounded the other way; measured up to 0.04 on these narrow random models
SPECIAL = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|3|>", "<|4|>", "<|5|>", "<|im_start|>", "<|im_end|>"]
CHARACTERS = ["Ġ", *(chr(code) for code in range(33, 127))]  # printable ASCII in byte-level spelling
VOCAB = len(SPECIAL) + len(CHARACTERS)


def config(**changes: Any) -> LFM2Config:
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "layer_types": ("conv", "full_attention", "conv"),
        "conv_L_cache": 3,
        "conv_bias": False,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_ids": (7,),
    }
    return LFM2Config(**(shape | changes))


def random_decoder(seed: int = 0, **changes: Any) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float("norm" in name), 0.1)
    return decoder


def recipe(name: str = "xnnpack-fp32", **changes: Any) -> Recipe:
    defaults = {"window": WINDOW, "options": {"max_tokens": MAX_TOKENS}}
    return recipes.load(name).model_copy(update=defaults | changes)


class Made(NamedTuple):
    """An artifact and the very decoder (quantized, eager) that it was lowered from."""

    decoder: Decoder
    folder: Path
    lowered: Lowered
    form: str

    def session(self) -> Session:
        return open_session(self.folder, self.manifest())

    def eager(self) -> EagerSession:
        return EagerSession(self.decoder, WINDOW)

    def manifest(self) -> Manifest:
        """As much of a manifest as a session reads."""
        source = SimpleNamespace(config={"vocab_size": self.decoder.config.vocab_size})
        fields = {"target": "xnnpack", "form": self.form, "window": WINDOW, "source": source}
        return Manifest.model_construct(methods=self.lowered.methods, **fields)


Make = Callable[..., Made]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make("xnnpack-int8", form="resident", conv_L_cache=5)`, each combination lowered once."""
    done: dict[str, Made] = {}

    def artifact(name: str = "xnnpack-fp32", form: str = "explicit", **shape: Any) -> Made:
        key = f"{name} {form} {sorted(shape.items())}"
        if key not in done:
            made_by, decoder = recipe(name, form=form), random_decoder(**shape)
            xnnpack.check(made_by, decoder.config)
            folder = tmp_path_factory.mktemp("artifact")
            quantize(decoder, made_by.quantization)
            done[key] = Made(decoder, folder, xnnpack.lower(decoder, made_by, folder, lambda _: None), form)
        return done[key]

    return artifact


def tokens(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """max|Δ| / max|expected|; shapes must agree, and NaN is an infinite error."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if not expected.size:
        return 0.0
    return float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max() / max(np.abs(expected).max(), 1e-30))


def state_error(found: Snapshot, expected: Snapshot) -> float:
    assert found.position == expected.position
    assert list(found.tensors) == list(expected.tensors)
    return max(relative(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def worst(found: Session, expected: Session, chunks: Iterable[int], pad: int | None = None, seed: int = 1) -> float:
    """Feed both sessions the same tokens in the same chunks; the largest error of logits and states on the way."""
    chunks, error = list(chunks), 0.0
    ids = tokens(sum(chunks), seed)
    found.reset()
    expected.reset()
    for size in chunks:
        chunk, ids = ids[:size], ids[size:]
        error = max(error, relative(found.prefill(chunk, pad_to=pad), expected.prefill(chunk)))
        if found.has_state:
            error = max(error, state_error(found.state(), expected.state()))
    return error


CHUNKS = ([16], [1] * 17, [2] * 8 + [1], [3, 1, 1, 7, 2, 3], [1, 16], [16, 1], [39], [17, 23])
SIX = {"layer_types": ("conv", "conv", "full_attention", "conv", "full_attention", "conv")}
SHAPES: dict[str, dict[str, Any]] = {
    "width 2 with bias": {"conv_L_cache": 2, "conv_bias": True, "layer_types": ("conv",)},
    "width 5 with bias, untied head": {
        "conv_L_cache": 5,
        "conv_bias": True,
        "tie_word_embeddings": False,
        "layer_types": ("conv", "full_attention"),
    },
    "one KV head": {"num_key_value_heads": 1, "layer_types": ("full_attention",)},
}


class TestFloat:
    @pytest.mark.parametrize("chunks", CHUNKS, ids=str)
    def test_equals_eager_for_any_split(self, make: Make, chunks: list[int]) -> None:
        made = make(**SIX)
        assert worst(made.session(), made.eager(), chunks) < FP32_ERROR

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
    def test_equals_eager_for_any_shape(self, make: Make, shape: dict[str, Any]) -> None:
        made = make(**shape)
        assert worst(made.session(), made.eager(), [1, 2, 9, 1, 1, 4]) < FP32_ERROR
        assert worst(made.session(), made.eager(), [1, 7, 2, 1, 8], pad=8) < FP32_ERROR

    def test_padding_changes_nothing(self, make: Make) -> None:
        made = make(**SIX)
        assert worst(made.session(), made.eager(), [1, 7, 2, 1, 8, 20], pad=8) < FP32_ERROR
        assert worst(made.session(), made.eager(), [WINDOW - 2, 1, 1], pad=64) < FP32_ERROR


class TestLaws:
    def test_reset_is_bit_for_bit_a_new_conversation(self, make: Make) -> None:
        session = make(**SIX).session()
        first = [session.prefill(tokens(7)), session.decode(3)]
        session.reset()
        assert session.position == 0
        again = [session.prefill(tokens(7)), session.decode(3)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    def test_snapshot_goes_on_exactly_here_and_elsewhere(self, make: Make) -> None:
        made = make(**SIX)
        session, other = made.session(), made.session()
        session.prefill(tokens(6))
        snapshot = session.state()
        kept = copy.deepcopy(snapshot)
        onward = [session.decode(token) for token in tokens(5)]
        assert state_error(snapshot, kept) == 0
        other.prefill(tokens(30, seed=8))
        for resumed in (session, other):
            resumed.restore(snapshot)
            assert state_error(resumed.state(), snapshot) == 0
            assert all(np.array_equal(a, resumed.decode(t)) for a, t in zip(onward, tokens(5), strict=True))

    def test_eager_and_artifact_exchange_states(self, make: Make) -> None:
        made = make(**SIX)
        session, eager = made.session(), made.eager()
        eager.prefill(tokens(9))
        session.restore(eager.state())
        assert relative(session.decode(5), eager.decode(5)) < FP32_ERROR

    def test_window_edge_and_one_past_it(self, make: Make) -> None:
        made = make(**SIX)
        session = made.session()
        assert worst(session, made.eager(), [WINDOW - 1, 1]) < FP32_ERROR
        before = session.state()
        with pytest.raises(WindowExceededError):
            session.decode(1)
        assert state_error(session.state(), before) == 0
        session.reset()
        with pytest.raises(WindowExceededError):
            session.prefill(tokens(WINDOW + 1))
        assert session.position == 0

    @pytest.mark.parametrize("chunk", [[], [VOCAB], [-1]], ids=str)
    def test_bad_chunk_is_refused(self, make: Make, chunk: list[int]) -> None:
        session = make(**SIX).session()
        with pytest.raises(UsageError):
            session.prefill(chunk)
        assert session.position == 0

    def test_logits_outlive_the_next_call(self, make: Make) -> None:
        session = make(**SIX).session()
        first = session.prefill(tokens(5))
        kept = first.copy()
        session.decode(9)
        assert np.array_equal(first, kept)


class TestQuantized:
    @pytest.mark.parametrize("name", ["xnnpack-int8", "xnnpack-int4"])
    def test_only_rounding_flips_differ(self, make: Make, name: str) -> None:
        """Each step starts from eager's state: most are exact, and an activation rounded the other way is bounded."""
        made = make(name)
        session, eager, errors = made.session(), made.eager(), []
        for token in tokens(WINDOW):
            errors.append(relative(session.decode(token), eager.decode(token)))
            session.restore(eager.state())
        assert np.median(errors) < FP32_ERROR
        assert max(errors) < FLIP_ERROR
        for chunks in ([17, 1, 1, 4], [39]):
            assert worst(session, eager, chunks) < FLIP_ERROR

    def test_int8_embedding_stays_in_integers(self, make: Make) -> None:
        program = (make("xnnpack-int8").folder / xnnpack.FILE).read_bytes()
        assert b"quantized_decomposed::embedding_byte" in program
        assert b"aten::embedding" not in program

    def test_int4_embedding_stays_in_integers(self, tmp_path: Path) -> None:
        rule = QuantizationRule(match="embedding", weight=WeightScheme(bits=4, group=32))
        made_by, decoder = recipe(quantization=(rule,)), random_decoder(layer_types=("conv",))
        quantize(decoder, made_by.quantization)
        lowered = xnnpack.lower(decoder, made_by, tmp_path, lambda _: None)
        program = (tmp_path / xnnpack.FILE).read_bytes()
        assert b"quantized_decomposed::embedding_4bit" in program
        assert b"aten::embedding" not in program
        made = Made(decoder, tmp_path, lowered, "explicit")
        assert worst(made.session(), made.eager(), [5, 1]) < FP32_ERROR

    def test_planted_fault_is_seen(self, make: Make) -> None:
        """One weight of the eager model altered after lowering: the comparison must tell."""
        made = make(**SIX)
        altered = copy.deepcopy(made.decoder)
        with torch.no_grad():
            altered.layers[3].conv.out_proj.weight[5, 7] += 1.0
        assert worst(made.session(), EagerSession(altered, WINDOW), [9, 1]) > 100 * FP32_ERROR


class TestResident:
    def test_equals_the_explicit_form_and_eager(self, make: Make) -> None:
        resident, explicit = make("xnnpack-int8", form="resident"), make("xnnpack-int8")
        for chunks in ([17, 1, 1, 4], [1] * 20, [2, 1, 30], [39, 1]):
            assert worst(resident.session(), resident.eager(), chunks) < FLIP_ERROR
            found, expected = resident.session(), explicit.session()
            assert relative(found.prefill(tokens(12)), expected.prefill(tokens(12))) < FLIP_ERROR

    def test_second_conversation_is_the_first(self, make: Make) -> None:
        session = make("xnnpack-int8", form="resident").session()
        first = [session.prefill(tokens(7)), session.decode(3)]
        session.reset()
        session.prefill(tokens(30, seed=4))
        session.reset()
        again = [session.prefill(tokens(7)), session.decode(3)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    def test_hides_its_state_and_knows_its_window(self, make: Make) -> None:
        session = make("xnnpack-int8", form="resident").session()
        assert not session.has_state
        assert not session.pads
        with pytest.raises(UsageError):
            session.state()
        session.prefill(tokens(WINDOW))
        with pytest.raises(WindowExceededError):
            session.decode(1)

    def test_metadata_of_the_stock_runners(self, make: Make) -> None:
        from executorch.extension.pybindings import portable_lib

        path = make("xnnpack-int8", form="resident").folder / xnnpack.FILE
        module = portable_lib._load_for_executorch(str(path))
        found = {name: module.run_method(name, ()) for name in module.method_names() if name != xnnpack.METHOD}
        assert found == {
            "get_max_seq_len": [MAX_TOKENS],
            "get_max_context_len": [WINDOW],
            "get_vocab_size": [VOCAB],
            "get_bos_id": [1],
            "get_eos_ids": [7],
            "use_kv_cache": [True],
            "use_sdpa_with_kv_cache": [False],
            "enable_dynamic_shape": [True],
        }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of single printable characters, with LFM2's special tokens at their ids."""
    vocabulary = {text: number for number, text in enumerate(SPECIAL + CHARACTERS)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


class TestStockRunner:
    def test_replies_are_greedy_and_survive_reset(self, make: Make, tokenizer: Path) -> None:
        """Prompts of one call, of exactly the call's limit, and of more than one call."""
        made, text = make("xnnpack-int8", form="resident"), Tokenizer.from_file(str(tokenizer))
        short, full, long = "<|im_start|>Hello", "exactly sixteen!", "a prompt that takes two calls"
        assert [len(text.encode(prompt).ids) for prompt in (short, full, long)] == [6, MAX_TOKENS, 29]
        replies = _text_llm_runner.generate(made.folder / xnnpack.FILE, tokenizer, [short, full, long, short], 8)
        assert replies[3] == replies[0]
        for prompt, reply in zip((short, full, long), replies, strict=False):
            ids = list(generate(made.eager(), text.encode(prompt).ids, (7,), 8))
            assert reply == text.decode(ids, skip_special_tokens=False)

    def test_broken_tokenizer_is_an_error(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{")
        pte = make("xnnpack-int8", form="resident").folder / xnnpack.FILE
        with pytest.raises(ArtifactError, match="TextLLMRunner"):
            _text_llm_runner.generate(pte, tmp_path / "tokenizer.json", ["Hello"], 2)


_LOWER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_xnnpack_target import random_decoder, recipe, quantize, xnnpack
made_by, decoder = recipe("xnnpack-int8"), random_decoder(layer_types=("conv",))
quantize(decoder, made_by.quantization)
xnnpack.lower(decoder, made_by, Path(sys.argv[1]), lambda _: None)
"""


def test_same_bytes_in_every_process(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    script = _LOWER.format(tests=str(folder))
    running = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(folder.parent)}
        command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / seed)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, log = process.communicate()
        assert process.returncode == 0, log
    digests = {hashlib.sha256((tmp_path / seed / xnnpack.FILE).read_bytes()).hexdigest() for seed in ("1", "2")}
    assert len(digests) == 1


class TestDelegation:
    def test_one_delegate_for_the_body_and_one_for_the_head(self, make: Make) -> None:
        method = make("xnnpack-int8").lowered.methods[0]
        assert method.delegation is not None
        assert method.delegation.calls == 2
        assert list(method.delegation.fallback) == sorted(method.delegation.fallback)
        assert not {"view_copy", "expand_copy", "mean_dim", "cat"} & method.delegation.fallback.keys()

    def test_a_product_left_outside_is_refused(self) -> None:
        from executorch.exir import to_edge

        product = nn.Linear(4, 4)
        edge = to_edge(torch.export.export(product, (torch.zeros(1, 4),)))
        with pytest.raises(LoweringError, match="mm"):
            delegation.delegation(edge.exported_program().graph_module)


class TestRefusals:
    def test_another_runtimes_activations(self) -> None:
        rule = QuantizationRule(match="linear", weight=WeightScheme(bits=4, group=32), activation="int8-block")
        with pytest.raises(RecipeError, match="int8-block"):
            xnnpack.check(recipe(quantization=(rule,)), config())

    def test_integer_weights_with_float_activations(self) -> None:
        rule = QuantizationRule(match="head", weight=WeightScheme(bits=8))
        with pytest.raises(RecipeError, match="int8-token"):
            xnnpack.check(recipe(quantization=(rule,)), config())

    def test_activations_of_an_embedding(self) -> None:
        rule = QuantizationRule(match="embedding", weight=WeightScheme(bits=8), activation="int8-token")
        with pytest.raises(RecipeError, match="embedding"):
            xnnpack.check(recipe(quantization=(rule,)), config())

    @pytest.mark.parametrize("options", [{"speed": 1}, {"max_tokens": 0}, {"max_tokens": True}, {"max_tokens": "9"}])
    def test_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(RecipeError):
            xnnpack.check(recipe(options=options), config())

    @pytest.mark.parametrize("kept", [0, 10, 2000, -1])
    def test_truncated_file(self, make: Make, tmp_path: Path, kept: int) -> None:
        made = make(**SIX)
        (tmp_path / xnnpack.FILE).write_bytes((made.folder / xnnpack.FILE).read_bytes()[:kept])
        with pytest.raises(ArtifactError, match=xnnpack.FILE):
            open_session(tmp_path, made.manifest())
