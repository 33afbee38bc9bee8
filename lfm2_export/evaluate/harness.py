"""An artifact as a model of lm-evaluation-harness, so that public tasks can score what an app will ship.

The harness chooses and words the questions and counts the answers; here is only what it asks of a model. One token at
a time, batch 1: scores are an artifact's own, through its real runtime, and slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lfm2_export.chat.generation import generate
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError, one_line
from lfm2_export.runtimes.session import Session, Snapshot

_LONGEST_REPLY = 256  # tokens, where a task does not say


class ArtifactLM(TemplateLM):
    """The model that the harness asks, over one session. What does not fit the window is cut on the left."""

    def __init__(self, session: Session, tokenizer: ChatTokenizer) -> None:
        super().__init__()
        self._session, self._text = session, tokenizer
        self._seen: tuple[tuple[int, ...], np.ndarray, Snapshot] | None = None

    @property
    def eot_token_id(self) -> int:
        return self._text.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """Return what stands before a text without a beginning: what the tokenizer itself puts there."""
        return next(iter(self._text.encode("", add_special_tokens=True)), self.eot_token_id)

    @property
    def tokenizer_name(self) -> str:
        return "lfm2-export"  # the harness keeps rendered requests under it

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the beginning marker unless told otherwise; a rendered chat brings its own."""
        bare = self._text.encode(string)
        if add_special_tokens is False or bare[:1] == [self.prefix_token_id]:
            return bare
        return self._text.encode(string, add_special_tokens=True)

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        return self._text.render(chat_history, add_generation_prompt=add_generation_prompt)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows with as much context as fits."""
        return [sum(self._windows(self._text.encode(request.args[0]))) for request in requests]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy replies, cut where one of the task's stop texts begins."""
        return [self._reply(*request.args) for request in requests]

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding would have said it) of each continuation after its context."""
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _windows(self, tokens: list[int]) -> Iterable[float]:
        pieces = get_rolling_token_windows(tokens, self.prefix_token_id, self._session.window - 1, 1)
        for context, continuation in map(make_disjoint_window, pieces):
            yield self._score(context, continuation)[0]

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        if len(continuation) >= self._session.window:
            raise UsageError(f"{len(continuation)} tokens to score do not fit the window of {self._session.window}")
        context = tuple(context)[-(self._session.window - len(continuation)) :]
        logits, total, is_greedy = self._after(context), 0.0, True
        for number, token in enumerate(continuation):
            exact = logits.astype(np.float64) - logits.max()
            total += float(exact[token] - np.log(np.exp(exact).sum()))
            is_greedy &= int(np.argmax(logits)) == token
            if number + 1 < len(continuation):
                logits = self._session.decode(token)
        return total, is_greedy

    def _after(self, context: tuple[int, ...]) -> np.ndarray:
        """Logits after the context; choices of one question share it, and a runtime that can goes back to it."""
        if self._seen is not None and self._seen[0] == context:
            self._session.restore(self._seen[2])
            return self._seen[1]
        self._session.reset()
        logits = self._session.prefill(context)
        if self._session.has_state:
            self._seen = context, logits, self._session.state()
        return logits

    def _reply(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") or options.get("temperature", 0):
            raise UsageError("scores are taken greedily; this task asks for sampling")
        limit = int(options.get("max_gen_toks", _LONGEST_REPLY))
        stops = [options["until"]] if isinstance(options.get("until"), str) else list(options.get("until", []))
        prompt = self.tok_encode(context)[-max(1, self._session.window - limit) :]
        self._session.reset()
        said: list[int] = []
        for token in generate(self._session, prompt, self._text.eos_ids, limit):
            said.append(token)
            text = self._text.decode(said)
            if any(stop and stop in text for stop in stops):
                break
        text = self._text.decode(said)
        return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]


def score(
    session: Session,
    tokenizer: ChatTokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    chat: bool = False,
    include: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Figures by task, as the harness names them. `include` is a folder with tasks of one's own.

    Raises UsageError for a task that nobody knows, that asks for sampling, or whose data cannot be had.
    """
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise UsageError(f"no task {unknown[0]!r} in this lm-eval; a folder with your own: --include")
    try:
        found = simple_evaluate(
            ArtifactLM(session, tokenizer),
            tasks=list(tasks),
            limit=limit,
            num_fewshot=few_shot,
            apply_chat_template=chat,
            task_manager=manager,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except (OSError, ConnectionError, ValueError) as error:
        raise UsageError(f"lm-eval cannot run {', '.join(tasks)}: {one_line(error)}") from error
    results: dict[str, dict[str, float]] = (found or {})["results"]
    return {
        task: {name.removesuffix(",none"): value for name, value in figures.items() if isinstance(value, float)}
        for task, figures in results.items()
    }
