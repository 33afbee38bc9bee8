"""What only a report shows of an artifact that takes images: drawn pictures, and what both sides answer about them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from lfm2_export.artifact.folder import Artifact
from lfm2_export.chat.generation import generate
from lfm2_export.checkpoint.nano_vl.drawing import draw, png
from lfm2_export.checkpoint.nano_vl.tasks import KINDS, PictureQuestion, picture_questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import Lfm2ExportError, WindowExceededError
from lfm2_export.extras import require
from lfm2_export.images.pictures import with_pictures
from lfm2_export.images.viewing import Viewer
from lfm2_export.runtimes.session import Session

_SEED, _ASKED = 7, 200  # of the questions that are drawn from
_LONGEST = 24  # tokens of a reply


class PictureCase(BaseModel):
    """A drawn picture, a question about it, and the greedy replies of both sides."""

    png: str  # base64
    question: str
    drawn: str  # what would be right
    reference: str
    artifact: str


class PictureCases(BaseModel):
    """The pictures of a report, or the reason why there are none."""

    cases: list[PictureCase] = []
    reason: str | None = None


def picture_cases(
    artifact: Artifact, vision: VisionConfig, tokenizer: ChatTokenizer | None, session: Session, reference: Session
) -> PictureCases:
    """Ask a session of the artifact and its reference about drawn pictures, one of each kind of question."""
    if tokenizer is None or not tokenizer.has_template:
        return PictureCases(reason="no tokenizer or chat template to ask about pictures with")
    try:
        require("PIL", "pillow", "vision", "drawing pictures for a report")
        viewers = [Viewer(artifact.folder, vision, each) for each in (session, reference)]
        return PictureCases(
            cases=[_case(question, tokenizer, viewers, (session, reference)) for question in _questions()]
        )
    except WindowExceededError as error:
        return PictureCases(reason=f"a picture is longer than the window: {error}")
    except Lfm2ExportError as error:
        return PictureCases(reason=str(error))


def _questions() -> list[PictureQuestion]:
    """The first question of each kind that has no other before it."""
    asked = [each for each in picture_questions(_SEED, _ASKED, "heldout") if len(each.messages) == 1]
    return [next(each for each in asked if each.kind == kind) for kind in KINDS]


def _case(
    question: PictureQuestion, tokenizer: ChatTokenizer, viewers: Sequence[Viewer], sessions: Sequence[Session]
) -> PictureCase:
    image, replies = draw(question.scene), []
    for viewer, session in zip(viewers, sessions, strict=True):
        seen = viewer.look(image, "a drawn picture")
        text = with_pictures(tokenizer.render(question.messages), [seen.text], viewer.processor.token.text)
        session.reset()
        found = generate(session, tokenizer.encode(text), tokenizer.eos_ids, _LONGEST, images=seen.embeddings)
        replies.append(tokenizer.decode(list(found)))  # in full: what fails there is no fault of the tokenizer
    return PictureCase(
        png=png(image),
        question=str(question.messages[0]["content"][1]["text"]),
        drawn=question.answer,
        reference=replies[1],
        artifact=replies[0],
    )
