"""Pictures in a conversation: seen once, never taken for one another, gone and back with their turns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from eager_artifacts import artifact_of
from PIL import Image
from seeing_checkpoints import PROCESSORS, noise
from transformers import AutoImageProcessor

from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import VISION_ENCODER, MethodSpec
from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.drafts import Lookup
from lfm2_export.chat.prompt import said
from lfm2_export.chat.saved_state import load_state, save_state
from lfm2_export.checkpoint import nano
from lfm2_export.checkpoint.processor_keys import parse_processor
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import CheckpointError, StateFileError, UsageError, WindowExceededError
from lfm2_export.images.pictures import ImageToken
from lfm2_export.images.viewing import Picture, Viewer
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, load_vision_encoder, open_checkpoint
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.runtimes.eager import EagerSession

WINDOW = 128
REPLY = " The sky is blue."


@pytest.fixture(scope="module")
def checkpoint(seeing_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(seeing_checkpoint))


@pytest.fixture(scope="module")
def parts(checkpoint: Checkpoint) -> tuple[Decoder, VisionEncoder]:
    return load_decoder(checkpoint), load_vision_encoder(checkpoint)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> ChatTokenizer:
    found = ChatTokenizer.load(checkpoint.folder, checkpoint.config)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def viewer(checkpoint: Checkpoint, parts: tuple[Decoder, VisionEncoder]) -> Viewer:
    assert checkpoint.vision is not None
    return Viewer(checkpoint.folder, checkpoint.vision, EagerSession(parts[0], WINDOW, parts[1]))


@pytest.fixture(scope="module")
def pictures(viewer: Viewer) -> list[Picture]:
    """Three of one size."""
    return [viewer.look(noise(seed), "x") for seed in range(3)]


@pytest.fixture(scope="module")
def artifact(checkpoint: Checkpoint) -> Artifact:
    method = artifact_of(checkpoint.config).manifest.methods[0]
    encoder = MethodSpec(name=VISION_ENCODER, file="model.pte", inputs=[], outputs=[], max_tokens=1)
    return artifact_of(checkpoint.config, WINDOW, methods=[method, encoder])


class Counting(EagerSession):
    """Counts the tokens it is fed, keeps the logits it gave."""

    fed = 0

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        self.fed += len(tokens)
        self.logits = super().prefill(tokens, pad_to)
        return self.logits


class Answering:
    """A sampler that always says `REPLY`, however it spells it, and ends."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.rest: list[int] = []
        self.whole = [*tokenizer.encode(REPLY), tokenizer.eos_ids[0]]

    def __call__(self, logits: np.ndarray, seen: Sequence[int]) -> int:
        self.rest = self.rest or list(self.whole)
        return self.rest.pop(0)


@pytest.fixture
def talks(
    checkpoint: Checkpoint, parts: tuple[Decoder, VisionEncoder], tokenizer: ChatTokenizer
) -> Iterator[Conversation]:
    """Conversations of one model, each with a session of its own."""

    def endless() -> Iterator[Conversation]:
        assert checkpoint.vision is not None
        while True:
            talk = Conversation(Counting(parts[0], WINDOW, parts[1]), tokenizer, sampler=Answering(tokenizer))
            token = checkpoint.vision.image_token_id
            talk.image_token = ImageToken(token, "<image>")
            yield talk

    return endless()


def say(talk: Conversation, text: str, *pictures: Picture) -> np.ndarray:
    """The logits behind the whole turn, whose reply is known."""
    talk.pictures += pictures
    assert "".join(talk.reply(text, 16)) == REPLY
    return talk.session.logits


def test_a_prompt_is_what_the_template_and_the_processor_make_of_it(talks, pictures, tokenizer):
    talk = next(talks)
    logits = say(talk, "What is this?", pictures[0], pictures[1])
    assert talk.pictures == []
    shown = "<image>" * 4
    assert [picture.text for picture in pictures[:2]] == [shown] * 2
    prompt = tokenizer.encode(
        f"<|startoftext|><|im_start|>user\n{shown}{shown}What is this?<|im_end|>\n<|im_start|>assistant\n"
    )
    alone = next(talks).session
    alone.prefill_with_images(prompt, np.concatenate([picture.embeddings for picture in pictures[:2]]))
    expected = alone.prefill([*tokenizer.encode(REPLY), tokenizer.eos_ids[0]])
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert (talk.speed.images, talk.speed.prompt_tokens) == (2, len(prompt))
    assert talk.speed.line().startswith("2 images in ")


def test_a_later_turn_feeds_only_what_is_new_and_may_bring_a_picture(talks, pictures):
    talk, other = next(talks), next(talks)
    say(talk, "What is this?", pictures[0])
    fed = talk.session.fed
    ours = say(talk, "And this?", pictures[1])
    assert talk.speed.cached_tokens == fed
    assert talk.session.fed == talk.session.position
    other.messages = talk.messages[:2]
    np.testing.assert_allclose(say(other, "And this?", pictures[1]), ours, atol=1e-5)  # fed at once
    assert other.speed.cached_tokens == 0


def test_pictures_of_one_size_are_never_taken_for_one_another(talks, pictures):
    talk = next(talks)
    first = say(talk, "What is this?", pictures[0])
    talk.messages[0] = said("What is this?", [pictures[1]])  # the same tokens
    say(talk, "Really?")
    assert talk.speed.cached_tokens == 0
    talk.rewind()
    talk.rewind()
    second = say(talk, "What is this?", pictures[1])
    assert np.abs(first - second).max() > 1e-4
    talk.rewind()
    np.testing.assert_array_equal(say(talk, "What is this?", pictures[0]), first)


def test_what_waits_for_a_message_is_dropped_by_a_reset_and_kept_by_a_refusal(talks, pictures):
    talk = next(talks)
    talk.pictures.append(pictures[0])
    with pytest.raises(WindowExceededError):
        say(talk, "sky " * WINDOW)
    assert talk.pictures == [pictures[0]]
    assert talk.messages == []
    talk.reset()
    assert talk.pictures == []


def test_a_saved_conversation_goes_on_with_its_pictures(talks, pictures, artifact, tmp_path):
    talk, other = next(talks), next(talks)
    say(talk, "What is this?", pictures[0])
    talk.save(tmp_path / "x.state", artifact)
    expected = say(talk, "And this?", pictures[1])
    other.resume(tmp_path / "x.state", artifact)
    np.testing.assert_array_equal(say(other, "And this?", pictures[1]), expected)
    assert other.session.fed < talk.session.fed
    other.save(tmp_path / "y.state", artifact)
    third = next(talks)
    third.resume(tmp_path / "y.state", artifact)
    third.tools = [{"name": "clock"}]  # now nothing that was fed is of use, so pictures are shown anew
    talk.tools = third.tools
    np.testing.assert_allclose(say(third, "Why?"), say(talk, "Why?"), atol=1e-5)
    assert third.speed.cached_tokens == talk.speed.cached_tokens == 0


def test_the_same_conversation_gives_the_same_file(talks, pictures, artifact, tmp_path):
    for name in ("1", "2"):
        talk = next(talks)
        say(talk, "What is this?", pictures[0], pictures[2])
        talk.save(tmp_path / name, artifact)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


WRONG = {
    "no embeddings": ([{"type": "image", "text": "<image>"}], [], "pictures"),
    "no place": ([], [np.zeros((1, 32), np.float32)], "pictures"),
    "another width": ([{"type": "image", "text": "<image>"}], [np.zeros((1, 31), np.float32)], "width of 32"),
    "no text": ([{"type": "image"}], [np.zeros((1, 32), np.float32)], "has no text"),
    "too many places": ([{"type": "image", "text": "<image>"}], [np.zeros((9, 32), np.float32)], "more places"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_forged_picture_in_a_state_file_is_refused_in_one_line(fault, talks, artifact, tmp_path):
    parts, embeddings, says = WRONG[fault]
    session = next(talks).session
    session.prefill([5, 9])
    messages = [{"role": "user", "content": parts}]
    save_state(tmp_path / "x", session.state(), artifact, [5, 9], messages=messages, pictures=embeddings)
    with pytest.raises(StateFileError, match=says) as caught:
        load_state(tmp_path / "x", artifact)
    assert str(tmp_path / "x") in str(caught.value)


def test_a_full_window_costs_the_oldest_turns_and_their_pictures(talks, pictures):
    talk = next(talks)
    talk.on_full, forgotten = "forget", 0
    for turn in range(12):
        logits = say(talk, "What is this?", pictures[turn % 3])
        if talk.speed.forgotten_turns:
            forgotten += talk.speed.forgotten_turns
            fresh = next(talks)
            fresh.messages = talk.messages[:-2]
            np.testing.assert_allclose(say(fresh, "What is this?", pictures[turn % 3]), logits, atol=1e-5)
    assert forgotten >= 4


def test_drafts_change_nothing(talks, pictures):
    plain, drafting = next(talks), next(talks)
    drafting.source = Lookup()
    for picture in pictures[:2]:
        for talk in (plain, drafting):
            say(talk, "What is this?", picture)
        ours, theirs = drafting.session.state(), plain.session.state()
        for name, tensor in theirs.tensors.items():
            np.testing.assert_allclose(ours.tensors[name], tensor, atol=1e-5)
    assert drafting.speed.accepted_tokens > 0


def test_a_template_without_a_place_for_pictures_is_said_in_one_line(talks, pictures, checkpoint, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((checkpoint.folder / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes((nano.PATH / "chat_template.jinja").read_bytes())
    talk = next(talks)
    talk.tokenizer = ChatTokenizer.load(tmp_path, checkpoint.config)
    with pytest.raises(UsageError, match=r"places \(<image>\) for 0 images, and 1 were given"):
        say(talk, "What is this?", pictures[0])
    assert talk.messages == []


WRONG_SETTINGS = {
    "patch_size": (16, "patch_size is 16; the model's config.json says 4"),
    "temporal_patch_size": (1, "temporal_patch_size is 1; the model's config.json says 2"),
    "merge_size": (4, "merge_size is 4; the model's config.json says 2"),
    "size": ({"shortest_edge": 99, "longest_edge": 9}, "the fewest pixels are more than the most"),
    "max_pixels": (10**9, "max_pixels is 1000000000"),
    "do_resize": (False, "do_resize is False"),
    "image_std": ([0, 1, 1], "image_std.0 is 0"),
}


@pytest.mark.parametrize("key", WRONG_SETTINGS)
def test_settings_of_lfm3_vl_that_do_not_fit_are_refused_in_one_line(key, checkpoint):
    value, says = WRONG_SETTINGS[key]
    with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
        parse_processor(PROCESSORS["lfm3_vl"] | {key: value}, "settings", checkpoint.vision)
    assert "\n" not in str(caught.value)


def test_lfm3_vls_patches_are_those_of_transformers_own_processor(checkpoint, viewer):
    own = AutoImageProcessor.from_pretrained(checkpoint.folder, backend="pil")
    images = [noise(0), noise(1, 1, 1), noise(2, 5, 7), Image.new("RGB", (3, 99), "red")]
    ours, theirs = viewer.processor.prepare(images), own(images, return_tensors="pt")
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs[name])
    assert [text.count("<image>") for text in ours.texts] == (theirs["image_grid_thw"].prod(1) // 4).tolist()
    patches = np.asarray(images[0], np.float32).reshape(2, 2, 4, 2, 2, 4, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    mean, std = (np.array(each).reshape(3, 1, 1) for each in (own.image_mean, own.image_std))
    by_hand = np.repeat((patches / 255 - mean)[..., None, :, :] / std[:, None], 2, axis=-3).reshape(16, 96)
    np.testing.assert_allclose(ours.tensors["pixel_values"][:16].numpy(), by_hand, atol=1e-5)
