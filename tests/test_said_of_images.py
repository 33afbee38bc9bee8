"""What an artifact with images says of them is what transformers says, on every target that writes such artifacts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_artifacts import Made, made_with_images
from vision_checkpoints import IMAGE_TOKEN, Grids, processed

from lfm2_export.errors import UsageError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.vision.images import images_of
from lfm2_export.runtimes.session import Session

ERROR = 1e-4


@pytest.fixture(scope="module", params=["onnx-fp32", "xnnpack-fp32"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_with_images(tmp_path_factory.mktemp("images"), request.param)


@pytest.fixture
def session(made: Made) -> Session:
    return made.session()


@pytest.mark.parametrize("grids", [[(3, 2)], [(1, 4), (2, 2), (3, 1)]], ids=["an image", "three"])
def test_what_it_says_of_images_is_what_transformers_says(grids: Grids, made: Made, session: Session) -> None:
    checkpoint, _, theirs = made
    given = processed("lfm2_vl", theirs.config, grids)
    vision_config = open_checkpoint(str(checkpoint)).vision
    assert vision_config is not None
    images = images_of(vision_config, given)
    embeddings = [session.encode(each.patches.numpy(), each.rows, each.columns) for each in images]
    tokens = [11, 12]
    for each in embeddings:
        tokens += [IMAGE_TOKEN] * len(each) + [13]
    logits, reply = session.prefill_with_images(tokens, np.concatenate(embeddings)), list[int]()
    for _ in range(6):  # greedy; transformers reads everything anew each time
        with torch.inference_mode():
            expected = theirs(torch.tensor([tokens + reply]), **given).logits[0, -1].numpy()
        assert np.abs(logits - expected).max() < ERROR * np.abs(expected).max()
        reply.append(int(expected.argmax()))
        assert int(logits.argmax()) == reply[-1]
        logits = session.decode(reply[-1])


def test_places_must_be_as_many_as_the_images_have(session: Session) -> None:
    with pytest.raises(UsageError, match="has 2 places for image embeddings"):
        session.prefill_with_images([5, IMAGE_TOKEN, IMAGE_TOKEN], np.zeros((1, 32), dtype=np.float32))
    assert session.position == 0
