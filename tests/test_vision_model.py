"""The traced image part equals transformers' in fp32, whatever its configuration and the grids; so the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from vision_checkpoints import FAMILIES, GRIDS, IMAGE_TOKEN, Grids, ours_of, processed, save_vision, vision_model

from lfm2_export.checkpoint.vision_config import parse_model_config
from lfm2_export.errors import UsageError
from lfm2_export.graph.interpret import interpret
from lfm2_export.graph.steps import GRID, PATCHES
from lfm2_export.graph.trace import trace_vision
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, load_vision_encoder, open_checkpoint
from lfm2_export.model.state import empty_state
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.model.vision.grid import with_positions
from lfm2_export.model.vision.images import Image, encode, images_of, with_images

TOLERANCE = 1e-4


def expected_of(theirs: Any, given: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(theirs.get_image_features(**given).pooler_output))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE * max(1.0, float(expected.abs().max())), rtol=0)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, VisionEncoder]:
    theirs = vision_model(request.param)
    return request.param, theirs, ours_of(theirs)


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_images_of_any_grid_equal_transformers(grids: Grids, pair: tuple[str, Any, VisionEncoder]) -> None:
    family, theirs, ours = pair
    given = processed(family, theirs.config, grids)
    with torch.inference_mode():
        close(encode(ours, images_of(ours.config, given)), expected_of(theirs, given))


def test_images_side_by_side_are_what_each_is_alone(pair: tuple[str, Any, VisionEncoder]) -> None:
    family, theirs, ours = pair
    images = images_of(ours.config, processed(family, theirs.config, GRIDS["images of many sizes"]))
    most, merge = max(len(image.patches) for image in images), ours.config.merge
    patches = torch.randn(len(images), most, ours.config.patch_values)
    for row, image in zip(patches, images, strict=True):
        row[: len(image.patches)] = image.patches
    with torch.inference_mode():
        together = ours(patches, torch.tensor([[image.rows, image.columns] for image in images]))
        for row, image in zip(together, images, strict=True):
            close(row[: len(image.patches) // merge**2], encode(ours, [image]))


@st.composite
def models(draw: st.DrawFn) -> tuple[str, dict[str, Any], Grids]:
    family = draw(st.sampled_from(FAMILIES))
    heads, side = draw(st.sampled_from([1, 2, 4])), st.integers(1, 6)
    grids = draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))
    layers = draw(st.integers(1, 3))
    own: dict[str, Any] = {
        "projector_bias": draw(st.booleans()),
        "projector_hidden_act": draw(st.sampled_from(["gelu", "gelu_pytorch_tanh"])),
        "projector_hidden_size": draw(st.integers(1, 24)),
    }
    tower: dict[str, Any] = {
        "hidden_size": heads * draw(st.sampled_from([4, 8, 12])),
        "intermediate_size": draw(st.integers(1, 32)),
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "patch_size": draw(st.integers(1, 4)),
    }
    if family == "lfm2_vl":
        own["projector_use_layernorm"] = draw(st.booleans())
        factor = own["downsample_factor"] = draw(st.integers(1, 3))
        assume(factor > 1 or all(columns > 1 for _, columns in grids))  # see the test of a single column
        tower |= {
            "num_channels": draw(st.sampled_from([1, 3])),
            "num_patches": draw(st.integers(1, 6)) ** 2,
            "hidden_act": draw(st.sampled_from(["gelu", "gelu_pytorch_tanh"])),
            "layer_norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
            "vision_use_head": draw(st.booleans()),
        }
    else:
        kinds = st.sampled_from(["conv", "full_attention"])
        tower |= {
            "num_key_value_heads": draw(st.sampled_from([each for each in (1, 2, 4) if heads % each == 0])),
            "layer_types": draw(st.lists(kinds, min_size=layers, max_size=layers)),
            "in_channels": draw(st.sampled_from([1, 3])),
            "spatial_merge_size": draw(st.integers(1, 3)),
            "temporal_patch_size": draw(st.integers(1, 2)),
            "conv_kernel_size": draw(st.sampled_from([1, 3, 5])),
            "norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
            "rope_parameters": {"rope_type": "axial", "rope_theta": draw(st.sampled_from([1e3, 1e6]))},
        }
    return family, own | {"tower": tower}, grids


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=models())
def test_any_configuration_equals_transformers(drawn: tuple[str, dict[str, Any], Grids]) -> None:
    family, changes, grids = drawn
    theirs = vision_model(family, **changes)
    ours = ours_of(theirs)
    given = processed(family, theirs.config, grids)
    with torch.inference_mode():
        close(encode(ours, images_of(ours.config, given)), expected_of(theirs, given))


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_the_positions_of_a_single_column_are_those_of_a_row_turned_around(rows: int) -> None:
    """Against ourselves: PyTorch 2.13's antialiased resize repeats the first row where the width becomes 1."""
    x, table = torch.zeros(1, rows, 8), torch.randn(3, 3, 8)
    column = with_positions(x, torch.tensor([[rows, 1]]), table.flatten(0, 1))
    row = with_positions(x, torch.tensor([[1, rows]]), table.transpose(0, 1).flatten(0, 1))
    torch.testing.assert_close(column, row)
    row_by_pytorch = F.interpolate(table.permute(2, 1, 0)[None], (1, rows), mode="bilinear", antialias=True)
    torch.testing.assert_close(column[0], row_by_pytorch[0, :, 0].T)


@pytest.mark.parametrize("grids", [[], [(3, 2)], [(1, 4), (2, 2), (3, 1)]], ids=["no image", "an image", "three"])
@pytest.mark.parametrize("as_held", [False, True], ids=["as saved", "as held in memory"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_model_equals_transformers(family: str, as_held: bool, grids: Grids, tmp_path: Path) -> None:
    theirs = save_vision(tmp_path, family, as_held, tower={"vision_use_head": True} if family == "lfm2_vl" else None)
    checkpoint = open_checkpoint(str(tmp_path))
    encoder, decoder = load_vision_encoder(checkpoint), load_decoder(checkpoint)
    ids = [11, 12]
    for rows, columns in grids:
        ids += [IMAGE_TOKEN] * rows * columns + [13, 14]
    tokens = torch.tensor([ids])
    given = processed(family, theirs.config, grids) if grids else {}
    images = images_of(encoder.config, given) if grids else []
    with torch.inference_mode():
        x = with_images(encoder.config, tokens, decoder.embed_tokens(tokens), encode(encoder, images))
        close(all_logits(decoder, tokens, x), theirs(tokens, **given).logits)


def all_logits(decoder: Decoder, tokens: Tensor, embeddings: Tensor) -> Tensor:
    call, state = decoder.call(tokens, torch.zeros(1, dtype=torch.long)), empty_state(decoder.config, tokens.shape[1])
    return decoder.from_embeddings(embeddings, call, state, all_logits=True)[0]


def test_the_steps_of_the_trace_compute_what_the_model_does(pair: tuple[str, Any, VisionEncoder]) -> None:
    family, theirs, ours = pair
    network = trace_vision(ours.config)
    for image in images_of(ours.config, processed(family, theirs.config, GRIDS["images of many sizes"])):
        patches, grid = image.patches.unsqueeze(0), torch.tensor([[image.rows, image.columns]])
        with torch.inference_mode():
            found = interpret(network, ours, {PATCHES: patches, GRID: grid}, network.results)[network.logits]
            torch.testing.assert_close(found, ours(patches, grid), atol=0, rtol=0)


def test_one_program_serves_every_size(pair: tuple[str, Any, VisionEncoder]) -> None:
    """By `torch.export`, for two blocks or more: a grid is a value, and only the number of patches is a shape."""
    family, theirs, ours = pair
    blocks, least = torch.export.Dim("blocks", min=2, max=256), 2 * ours.config.merge**2
    patches, grid = torch.randn(1, 24, ours.config.patch_values), torch.tensor([[4, 6]])
    dynamic = ({1: ours.config.merge**2 * blocks}, None)
    program = torch.export.export(ours, (patches, grid), dynamic_shapes=dynamic, strict=True).module()
    for grids in GRIDS.values():
        given = processed(family, theirs.config, grids)
        for image in images_of(ours.config, given):
            grid = torch.tensor([[image.rows, image.columns]])
            padding = torch.randn(max(0, least - len(image.patches)), ours.config.patch_values)
            with torch.inference_mode():
                expected = encode(ours, [image])
                found = program(torch.cat((image.patches, padding)).unsqueeze(0), grid)
                close(found[0, : len(expected)], expected)


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("lfm3_vl", {"image_grid_thw": torch.tensor([[2, 4, 4]])}, "video is not supported"),
        ("lfm3_vl", {"pixel_values_videos": torch.zeros(1)}, "video is not supported"),
        ("lfm3_vl", {"image_grid_thw": torch.tensor([[1, 4, 6]])}, "gave 16 patches; its grids hold 24"),
        ("lfm3_vl", {"pixel_values": torch.zeros(16, 48)}, "a patch has 48 values; the model takes 96"),
        ("lfm2_vl", {"pixel_values": torch.zeros(1, 16, 27)}, "a patch has 27 values; the model takes 48"),
        ("lfm2_vl", {"spatial_shapes": torch.tensor([[4, 5]])}, "has 16 patches, which do not fill its grid of 4 × 5"),
        ("lfm2_vl", {"spatial_shapes": torch.tensor([[1, 16]])}, "a grid of 1 × 16 patches; expected multiples of 2"),
        ("lfm2_vl", {"spatial_shapes": None}, "the processor gave no spatial_shapes; expected pixel_values"),
    ],
)
def test_what_no_processor_of_the_model_makes_is_refused(family: str, changes: dict[str, Any], says: str) -> None:
    theirs = vision_model(family)
    given = processed(family, theirs.config, [(2, 2)])
    if family == "lfm2_vl":  # without padding, so that a change is the only thing wrong
        given = {name: tensor[:, :16] if name != "spatial_shapes" else tensor for name, tensor in given.items()}
    given = {name: tensor for name, tensor in (given | changes).items() if tensor is not None}
    vision = parse_model_config(theirs.config.to_dict(), "config.json").vision
    assert vision is not None
    with pytest.raises(UsageError, match=says):
        images_of(vision, given)


def test_places_and_images_must_be_as_many(pair: tuple[str, Any, VisionEncoder]) -> None:
    _, _, ours = pair
    tokens = torch.tensor([[1, IMAGE_TOKEN, IMAGE_TOKEN, 5]])
    image = encode(ours, [Image(torch.zeros(4, ours.config.patch_values), 2, 2)])
    with pytest.raises(UsageError, match=r"has 2 places .* \(token 3\), its images have 1"):
        with_images(ours.config, tokens, torch.zeros(1, 4, ours.config.output_size), image)


def test_a_text_model_takes_no_images(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="is a text model and takes no images"):
        load_vision_encoder(open_checkpoint(str(tiny_checkpoint)))
