"""The `.pte` file itself: equal tensors stored once, rewriting that changes nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from decoders import worst
from torch import nn
from xnnpack_artifacts import FLIP_ERROR, FP32_ERROR, Made, Make, lower, program, recipe

from lfm2_export.quantize.apply import quantized_weight
from lfm2_export.targets.xnnpack import methods, target
from lfm2_export.targets.xnnpack.pte_file import tidy
from lfm2_export.targets.xnnpack.weights import nibbles

RECIPES = {"xnnpack-fp32": FP32_ERROR, "xnnpack-int8": FLIP_ERROR, "xnnpack-int4": FLIP_ERROR}
NAMES = 4096  # bytes for the names, shapes and alignment of a second matrix


def stored(module: nn.Module) -> bytes:
    """The bytes of a matrix as the file has them."""
    weight = quantized_weight(module)
    if weight is None:
        return bytes(module.weight.detach().numpy().tobytes())
    return bytes((weight.values if weight.bits == 8 else nibbles(weight.values)).numpy().tobytes())


@pytest.mark.parametrize("name", RECIPES)
class TestSharing:
    def test_a_tied_head_and_embedding_are_stored_once(self, make: Make, name: str) -> None:
        tied, untied = make(name), make(name, tie_word_embeddings=False)
        embedding = stored(tied.decoder.embed_tokens)
        assert embedding == stored(tied.decoder.lm_head)
        assert tied.path.read_bytes().count(embedding) == 1
        saved = untied.path.stat().st_size - tied.path.stat().st_size
        assert len(embedding) <= saved < len(embedding) + NAMES
        assert worst(tied.session(), tied.eager(), [5, 1, 9]) < RECIPES[name]

    def test_an_untied_head_has_bytes_of_its_own(self, make: Make, name: str) -> None:
        made = make(name, tie_word_embeddings=False)
        content = made.path.read_bytes()
        head, embedding = stored(made.decoder.lm_head), stored(made.decoder.embed_tokens)
        assert head != embedding
        assert (content.count(head), content.count(embedding)) == (1, 1)
        assert worst(made.session(), made.eager(), [5, 1, 9]) < RECIPES[name]


def copy_of(made: Made, folder: Path) -> Made:
    """The same artifact, its file rewritten."""
    tidy(made.path, folder / methods.FILE)
    return made._replace(folder=folder)


@pytest.mark.parametrize("form", ["explicit", "resident"])
@pytest.mark.parametrize("name", ["xnnpack-fp32", "xnnpack-int8", "xnnpack-int4"])
def test_a_tidy_file_may_be_tidied_again(make: Make, tmp_path: Path, name: str, form: str) -> None:
    made = make(name, {"form": form})
    again = copy_of(made, tmp_path)
    assert worst(again.session(), made.session(), [5, 1, 9]) == 0
    assert again.path.stat().st_size == made.path.stat().st_size


@pytest.mark.parametrize("name", RECIPES)
def test_tidying_writes_the_same_bytes_every_time(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ExecuTorch's exporter wrote, rewritten twice; a tied table is what is saved."""
    monkeypatch.setattr(target, "tidy", shutil.copyfile)
    raw = lower(recipe(name), tmp_path)
    saved = [tidy(raw.path, tmp_path / copy) for copy in ("first", "second")]
    first, second = ((tmp_path / copy).read_bytes() for copy in ("first", "second"))
    assert first == second
    assert saved == [raw.path.stat().st_size - len(first)] * 2
    assert saved[0] > 0.9 * len(stored(raw.decoder.embed_tokens))


def test_state_is_no_output(make: Make) -> None:
    plan = program(make().path).execution_plan[0]
    assert len(plan.outputs) == 1
    assert not set(plan.outputs) & set(plan.inputs)
