"""The result of `bench --draft`: a reply with drafts beside the same one without."""

from __future__ import annotations

from pydantic import BaseModel


class Drafted(BaseModel):
    """A greedy reply that begins in the middle of what has been said before. Seconds are without the prompt's."""

    source: str  # as given to --draft
    text: str  # what the prompt is made of
    tokens: int
    seconds: float
    plain_seconds: float  # without drafts
    drafted: int
    accepted: int
    same_text: bool
