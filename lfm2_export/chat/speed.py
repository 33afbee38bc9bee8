"""How fast a reply came."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Speed:
    """The speed of the last reply. The first token's time is the prefill's."""

    prompt_tokens: int = 0  # fed
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0
    cached_tokens: int = 0  # of the prompt, not fed: the state had them already
    forgotten_turns: int = 0  # the oldest ones, before it, since the window was full
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of those
    single_tokens: int = 0  # decoded one by one beside the drafts
    single_seconds: float = 0.0
    images: int = 0  # new ones
    image_seconds: float = 0.0  # of those, before the prefill

    def line(self) -> str:
        """Return `prefill 31 tokens (512 more from cache) at 812 tok/s, decode 12 tokens at 402 tok/s`, for people."""
        prefill = self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0
        decode = self.new_tokens / self.new_seconds if self.new_seconds else 0.0
        cached = f" ({self.cached_tokens} more from cache)" if self.cached_tokens else ""
        several = "s" if self.images > 1 else ""
        seen = f"{self.images} image{several} in {self.image_seconds:.2f} s, " if self.images else ""
        return (
            f"{seen}prefill {self.prompt_tokens} tokens{cached} at {prefill:.0f} tok/s, "
            f"decode {self.new_tokens} tokens at {decode:.0f} tok/s{self._drafts()}"
        )

    def _drafts(self) -> str:
        if not self.drafted_tokens:
            return ""
        alone = f", {self.single_tokens / self.single_seconds:.0f} without" if self.single_seconds else ""
        return f"{alone} (accepted {self.accepted_tokens} of {self.drafted_tokens} drafted)"
