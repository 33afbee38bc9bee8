"""The resident form: through its session, and through ExecuTorch's stock TextLLMRunner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from character_tokenizer import SIZE, write_tokenizer
from decoders import VOCAB, relative, tokens, worst
from tokenizers import Tokenizer
from xnnpack_artifacts import FLIP_ERROR, MAX_TOKENS, WINDOW, Made, Make

from lfm2_export.chat.generation import generate
from lfm2_export.chat.sampling import Sampler, greedy
from lfm2_export.errors import ArtifactError, UsageError, WindowExceededError
from lfm2_export.runtimes import _stock_runners
from lfm2_export.targets.xnnpack import methods

RESIDENT = {"form": "resident"}
TEXT = {"vocab_size": SIZE}
NEW_TOKENS = 8


class TestResident:
    def test_equals_the_explicit_form_and_eager(self, make: Make) -> None:
        resident, explicit = make("xnnpack-int8", RESIDENT), make("xnnpack-int8")
        for chunks in ([17, 1, 1, 4], [1] * 20, [2, 1, 30], [39, 1]):
            assert worst(resident.session(), resident.eager(), chunks) < FLIP_ERROR
            found, expected = resident.session(), explicit.session()
            assert relative(found.prefill(tokens(12)), expected.prefill(tokens(12))) < FLIP_ERROR

    def test_second_conversation_is_the_first(self, make: Make) -> None:
        session = make("xnnpack-int8", RESIDENT).session()
        first = [session.prefill(tokens(7)), session.decode(3)]
        session.reset()
        session.prefill(tokens(30, seed=4))
        session.reset()
        again = [session.prefill(tokens(7)), session.decode(3)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    def test_hides_its_state_and_knows_its_window(self, make: Make) -> None:
        session = make("xnnpack-int8", RESIDENT).session()
        assert not session.has_state
        assert not session.pads
        with pytest.raises(UsageError):
            session.state()
        session.prefill(tokens(WINDOW))
        with pytest.raises(WindowExceededError):
            session.decode(1)

    def test_metadata_of_the_stock_runners(self, make: Make) -> None:
        from executorch.extension.pybindings import portable_lib

        path = make("xnnpack-int8", RESIDENT).folder / methods.FILE
        module = portable_lib._load_for_executorch(str(path))
        found = {name: module.run_method(name, ()) for name in module.method_names() if name != methods.FORWARD}
        assert found == {
            "get_max_seq_len": [MAX_TOKENS],
            "get_max_context_len": [WINDOW],
            "get_vocab_size": [VOCAB],
            "get_bos_id": [1],
            "get_eos_ids": [7],
            "use_kv_cache": [True],
            "use_sdpa_with_kv_cache": [True],
            "enable_dynamic_shape": [True],
        }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def text_of(count: int) -> str:
    """A prompt of that many tokens, none special."""
    return "".join(chr(97 + token % 26) for token in tokens(count))


def replies_of_eager(
    made: Made, tokenizer: Path, prompts: list[str], limit: int, sampler: Sampler = greedy
) -> list[str]:
    text = Tokenizer.from_file(str(tokenizer))
    replies = [list(generate(made.eager(), text.encode(prompt).ids, (7,), limit, sampler)) for prompt in prompts]
    return [text.decode(ids, skip_special_tokens=False) for ids in replies]


class TestStockRunner:
    def test_replies_are_greedy_and_survive_reset(self, make: Make, tokenizer: Path) -> None:
        made = make("xnnpack-int8", RESIDENT, **TEXT)
        prompts = ["<|im_start|>Hello", "a prompt that takes two calls"]
        expected = replies_of_eager(made, tokenizer, prompts, NEW_TOKENS)
        replies = _stock_runners.generate(made.path, tokenizer, [*prompts, prompts[0]], NEW_TOKENS)
        assert replies == [*expected, expected[0]]

    def test_prompts_at_the_limit_of_one_call(self, make: Make, tokenizer: Path) -> None:
        made = make("xnnpack-fp32", RESIDENT, **TEXT)
        prompts = [text_of(count) for count in (1, MAX_TOKENS - 1, MAX_TOKENS, MAX_TOKENS + 1, 2 * MAX_TOKENS)]
        expected = replies_of_eager(made, tokenizer, prompts, NEW_TOKENS - 1)
        assert len(set(expected)) == len(prompts)
        assert _stock_runners.generate(made.path, tokenizer, prompts, NEW_TOKENS - 1) == expected

    def test_a_prompt_at_the_windows_edge_in_one_call(self, make: Make, tokenizer: Path) -> None:
        window = 2048
        made = make("xnnpack-fp32", RESIDENT | {"window": window, "options": {"max_tokens": window}}, **TEXT)
        prompts = [text_of(window - 1), text_of(window - 2)]
        expected = replies_of_eager(made, tokenizer, prompts, 1)
        assert all(expected)
        assert _stock_runners.generate(made.path, tokenizer, prompts, 1) == expected

    def test_a_prompt_of_exactly_one_calls_2048_tokens(self, make: Make, tokenizer: Path) -> None:
        """Upstream's own export bounds its token dimension at 2047, and its runner sends 2048."""
        longest = 2048
        made = make("xnnpack-fp32", RESIDENT | {"window": longest + 8, "options": {"max_tokens": longest}}, **TEXT)
        prompts = [text_of(longest - 1), text_of(longest)]
        expected = replies_of_eager(made, tokenizer, prompts, 2)
        assert all(expected)
        assert _stock_runners.generate(made.path, tokenizer, prompts, 2) == expected

    def test_it_samples_among_the_tokenizers_tokens_alone(self, make: Make, tokenizer: Path) -> None:
        """Whatever `get_vocab_size` says: a trained model has no words behind them, a random one does."""
        made = make("xnnpack-fp32", RESIDENT, vocab_size=4 * SIZE)
        prompts = ["<|im_start|>Hello", "another prompt"]
        replies = _stock_runners.generate(made.path, tokenizer, prompts, NEW_TOKENS)
        assert replies != replies_of_eager(made, tokenizer, prompts, NEW_TOKENS)
        among = replies_of_eager(made, tokenizer, prompts, NEW_TOKENS, lambda logits, seen: greedy(logits[:SIZE], seen))
        assert replies == among

    def test_broken_tokenizer_is_an_error(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(ArtifactError, match="TextLLMRunner"):
            _stock_runners.generate(make("xnnpack-int8", RESIDENT, **TEXT).path, tmp_path / "tokenizer.json", ["Hi"], 2)
