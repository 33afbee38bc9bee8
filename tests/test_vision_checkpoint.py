"""A vision-language checkpoint: its decoder alone is a decoder like any other; what cannot be done, a line says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import code_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_checkpoint_config import JSON
from transformers import AutoModelForImageTextToText
from vision_checkpoints import FAMILIES, save_vision, vision_model

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.checkpoint.config import read_config
from lfm2_export.checkpoint.vision_config import parse_model_config
from lfm2_export.environment.resources import parameters
from lfm2_export.errors import CheckpointError, RecipeError
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.random_init import VISION_SIZES, init_checkpoint
from lfm2_export.model.state import empty_state
from lfm2_export.pipeline import export

TOKENS = torch.arange(10, 50).view(2, 20)
TOLERANCE = 1e-4


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    save_vision(tmp_path / "vision", family)
    return tmp_path / "vision"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM2_EXPORT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("as_held", [False, True], ids=["as saved", "as held in memory"])
def test_its_decoder_computes_what_transformers_does(family: str, tied: bool, as_held: bool, tmp_path: Path) -> None:
    own = {"tie_word_embeddings": not tied}  # of the decoder's own object, which does not decide
    theirs = save_vision(tmp_path, family, as_held, text=own, tie_word_embeddings=tied)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.config.tie_word_embeddings == tied
    ours = load_decoder(checkpoint)
    with torch.inference_mode():
        logits, _ = ours(TOKENS, torch.zeros(2, dtype=torch.long), None, empty_state(ours.config, 20, 2), True)
        torch.testing.assert_close(logits, theirs(TOKENS).logits, atol=TOLERANCE, rtol=0)


def test_its_decoder_is_the_one_that_is_saved_alone(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    whole = open_checkpoint(str(folder))
    whole.copy_companions(alone)
    tensors = load_file(folder / "model.safetensors")
    text = {name.replace("language_model.", ""): each for name, each in tensors.items() if "language_model." in name}
    save_file(text, alone / "model.safetensors")
    decoder = open_checkpoint(str(alone))
    assert decoder.vision is None
    assert (decoder.config, decoder.digest()) == (whole.config, whole.digest())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "recipe"), [("lfm2_vl", "xnnpack-fp32"), ("lfm3_vl", "onnx-fp32")])
def test_the_decoder_alone_is_exported_and_proven(folder: Path, tmp_path: Path, recipe: str) -> None:
    artifact, report = export(
        str(folder), recipe, tmp_path / "out", overrides=["parts=text", "window=64"], effort="quick"
    )
    assert report is not None
    assert report.passed
    assert read_config(artifact.folder / "config.json") == open_checkpoint(str(folder)).config
    assert open_artifact(artifact.folder).manifest.recipe["parts"] == "text"
    assert code_of("parity", str(artifact.folder), "--quiet", "--effort", "quick") == 0  # found again where it lay
    assert (
        code_of("bundle", str(artifact.folder), "--for", "desktop", "--allow-quick", "-o", str(tmp_path / "app.zip"))
        == 0
    )
    assert code_of("verify", str(tmp_path / "app.zip")) == 0


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("coreml-fp16", "and the coreml target does not write its image part (these do: onnx, xnnpack)"),
        ("qnn-fp16", "and the qnn target does not write its image part (these do: onnx, xnnpack)"),
        ("onnx-q4f16", "whose image part computes in fp32"),
    ],
)
def test_images_are_refused_with_what_is_possible(
    recipe: str, says: str, folder: Path, family: str, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    before = contents(tmp_path)
    with pytest.raises(RecipeError) as refusal:
        export(str(folder), recipe, tmp_path / "out")
    what = f"{recipe}: vision is a vision-language model ({family}), {says}; --set parts=text exports its text decoder"
    assert str(refusal.value).startswith(what)
    assert contents(tmp_path) == before


def test_a_part_that_there_is_none_of_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("export", str(folder), "--set", "parts=video", "-o", str(tmp_path / "out"), "-q") == 2
    assert "parts: input should be 'all' or 'text'" in capsys.readouterr().err


def test_inspect_tells_what_it_holds(folder: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("inspect", str(folder)) == 0
    shown = capsys.readouterr().out
    for said in (f"{family}, for text and images", "1 conv, 1 full_attention", "image part", "--set parts=text"):
        assert said in shown
    assert code_of("inspect", str(folder), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    stored = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert sum(document["parameters"].values()) == stored
    assert document["vision"]["output_size"] == document["decoder"]["hidden_size"] == 32


def test_inspect_tells_of_a_decoder_that_it_is_exported_whole(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("inspect", str(tiny_checkpoint)) == 0
    shown = capsys.readouterr().out
    assert "whole" in shown
    assert "image part" not in shown


def test_init_writes_one_that_transformers_opens(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(vision_model(family).config.to_json_string())
    init_checkpoint(str(tmp_path / "config.json"), tmp_path / "made")
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(report.values())
    checkpoint = open_checkpoint(str(tmp_path / "made"))
    assert checkpoint.random_weights
    assert checkpoint.vision is not None
    norms = [each for name, each in checkpoint.weights.image_tensors() if "norm" in name and name.endswith("weight")]
    assert norms
    assert all(bool((each == 1).all()) for each in norms)


@pytest.mark.parametrize(
    ("size", "millions"),
    [("lfm2-vl-450m", (354, 96)), ("lfm2-vl-1.6b", (1170, 430)), ("lfm3-vl-2b", (1729, 189))],
)
def test_sizes_have_the_released_shapes(size: str, millions: tuple[int, int]) -> None:
    decoder, vision = parse_model_config(VISION_SIZES[size], "config.json")
    assert vision is not None
    assert tuple(round(parameters(each) / 1e6) for each in (decoder, vision)) == millions


def document_of(family: str) -> dict[str, Any]:
    return json.loads(vision_model(family).config.to_json_string())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("family", "part", "changes", "says"),
    [
        ("lfm2_vl", "", {"text_config": None}, "text_config is missing; expected an object"),
        ("lfm2_vl", "", {"vision_config": [1]}, "vision_config is [1]; expected an object"),
        ("lfm2_vl", "", {"image_token_id": 1 << 19}, "image_token_id is 524288; expected a token id below vocab_size"),
        ("lfm2_vl", "", {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'; expected 'gelu' or"),
        ("lfm2_vl", "", {"quantization_config": {"bits": 4}}, "expected none, plain F32, F16 or BF16 weights"),
        ("lfm2_vl", "text_config", {"model_type": "llama"}, "text_config: model_type is 'llama'; only 'lfm2'"),
        ("lfm2_vl", "text_config", {"hidden_size": 0}, "text_config: hidden_size is 0; expected a whole number"),
        ("lfm2_vl", "vision_config", {"num_patches": 15}, "num_patches is 15; expected a square number"),
        ("lfm2_vl", "vision_config", {"patch_size": [4, 4]}, "patch_size is [4, 4]; expected a whole number"),
        ("lfm2_vl", "vision_config", {"hidden_act": "silu"}, "hidden_act is 'silu'; expected 'gelu' or"),
        ("lfm2_vl", "vision_config", {"model_type": "vit"}, "model_type is 'vit'; only 'siglip2_vision_model'"),
        ("lfm2_vl", "vision_config", {"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention"),
        ("lfm3_vl", "vision_config", {"conv_kernel_size": 4}, "conv_kernel_size is 4; expected an odd whole number"),
        ("lfm3_vl", "vision_config", {"layer_types": ["conv"]}, "layer_types has 1 entries; expected num_hidden"),
        ("lfm3_vl", "vision_config", {"num_attention_heads": 16}, "expected a multiple of 4 for each of num_attention"),
        ("lfm3_vl", "vision_config", {"num_key_value_heads": 3}, "expected a multiple of num_key_value_heads 3"),
        ("lfm3_vl", "vision_config", {"rope_parameters": {"rope_type": "default"}}, "'default'; expected 'axial'"),
    ],
)
def test_a_config_that_is_no_model_is_refused_by_name(
    family: str, part: str, changes: dict[str, Any], says: str
) -> None:
    document = document_of(family)
    (document[part] if part else document).update(changes)
    with pytest.raises(CheckpointError) as refusal:
        parse_model_config(document, "config.json")
    assert str(refusal.value).startswith("config.json: ")
    assert says in str(refusal.value)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("name", FAMILIES)
def test_any_value_anywhere_is_a_config_or_a_one_line_refusal(name: str, data: st.DataObject) -> None:
    document = document_of(name) if name not in _DOCUMENTS else _DOCUMENTS[name]
    _DOCUMENTS[name] = document
    changed = json.loads(json.dumps(document))
    part = data.draw(st.sampled_from(["", "text_config", "vision_config"]))
    inner = changed[part] if part else changed
    inner.update(data.draw(st.dictionaries(st.sampled_from([*inner, "layer_types", "rope_parameters"]), JSON)))
    changed["model_type"] = name
    try:
        decoder, vision = parse_model_config(changed, "config.json")
    except CheckpointError as error:
        refusal = str(error)
    else:
        refusal = "config.json: "
        assert vision is not None
        assert vision.output_size == decoder.hidden_size
    assert refusal.startswith("config.json: ")
    assert "\n" not in refusal


_DOCUMENTS: dict[str, dict[str, Any]] = {}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.pop("model.language_model.layers.0.ffn_norm.weight"), "layers.0.ffn_norm.weight is missing"),
        (lambda t: t.update({"model.audio.weight": torch.ones(2)}), "'model.audio.weight' is not part of the model"),
        (lambda t: t.update({"model.norm.weight": torch.ones(2)}), "'model.norm.weight' is not part of the model"),
        (lambda t: t["model.language_model.embed_tokens.weight"].fill_(float("nan")), "language_model.embed_tokens"),
        (lambda t: t.update({"lm_head.weight": torch.ones(2, 2)}), "tensor lm_head.weight has shape [2, 2]"),
    ],
)
def test_weights_that_do_not_fit_are_named_as_the_file_names_them(
    spoil: Callable[[dict[str, torch.Tensor]], Any], says: str, folder: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        load_decoder(open_checkpoint(str(folder)))
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_adapter_onto_one_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    save_file({"a": torch.ones(1)}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is a vision-language model; merge them with PEFT"):
        open_checkpoint(str(adapter), base=str(folder))
