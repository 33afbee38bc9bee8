"""How much work each stage of a proof is, known before it begins: the stage's share of the bar.

A simple model: a call reads every weight once and does two operations a weight for each token. Units are seconds of a
machine that reads 10 GB/s and does 150 billion operations a second; only their ratios count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from lfm2_export import runtimes
from lfm2_export.environment.resources import parameters
from lfm2_export.model.sequences import TokenSequences, pieces
from lfm2_export.parity.cache import first_sequences
from lfm2_export.parity.cases import Case
from lfm2_export.parity.other_form import none_because
from lfm2_export.parity.subject import Subject
from lfm2_export.quantize.size import model_bytes

_BYTES, _OPERATIONS = 10e9, 150e9  # a second
_CALL = 5e-4  # of any call, however small the model
_LOWERING = 4.0  # of tracing and writing any network, however small
_BEGUN = 20  # times that the laws begin behind text that fills a sliding window
_PASSES = 15  # over the weights in fp32: what loading and quantizing takes


class Work:
    """The stages of one proof, through runtimes whose cases are `cases_of`.

    `reads`: how many tokens the session which reads text for a runtime takes in a call; 0 where it decodes.
    """

    def __init__(self, subject: Subject, cases_of: Mapping[str, Sequence[Case]], reads: Mapping[str, int]) -> None:
        self._subject, self._cases_of, self._reads = subject, cases_of, reads
        self._parameters = parameters(subject.config)
        self._stored = model_bytes(subject.config, subject.recipe.quantization)

    def total(self) -> float:
        """Return the work of all stages."""
        text = self._subject.text
        fp32 = sum(self.fp32(portion) for portion in range(len(text.portions)))
        once = self.loading() + self.other_form() + fp32 + self.questions()
        each = self.laws() + self.details() + self.questions()
        own = (self.lowering, self.weights_alone, partial(self.quality, sequences=text.sequences))
        return once + sum(each + sum(stage(name) for stage in own) for name in self._cases_of)

    def call(self, tokens: int) -> float:
        """Return the work of a call of the artifact."""
        return _CALL + self._stored / _BYTES + tokens * self._token()

    def loading(self) -> float:
        """Return the work of making the quantized model."""
        return _PASSES * 4 * self._parameters / _BYTES

    def other_form(self) -> float:
        """Return the work of lowering the other form."""
        return _LOWERING + 2 * self.loading() if none_because(self._subject) is None else 0.0

    def lowering(self, runtime: str) -> float:
        """Return the work of question 1 through a runtime: cases, single steps, replies, and the reference's own."""
        cases, effort = self._cases_of[runtime], self._subject.effort
        steps, replies = len(cases[0].tokens), effort.prompts * effort.continuation
        calls = sum(len(case.chunks) for case in cases) + steps + replies
        tokens = sum(len(case.tokens) for case in cases) + steps + replies + effort.prompts * 32
        eager = (4 + effort.continuation) * 4 * self._parameters / _BYTES + 2 * tokens * self._token()
        return calls * self.call(0) + tokens * self._token() + eager

    def laws(self) -> float:
        """Return the work of the state laws, of which one fills the window."""
        filled = self._subject.window if self._subject.effort.whole else 1
        before = len(self._subject.before_spoken)
        return 200 * self.call(1) + self.call(filled) + (_BEGUN * self.call(before) if before else 0.0)

    def weights_alone(self, runtime: str) -> float:
        """Return the work of the stored weights alone: the cases once more, where a runtime can."""
        able = runtimes.find(runtime).judges_weights
        asked = able and self._subject.rounds and self._subject.effort.whole
        return self.lowering(runtime) / 2 if asked else 0.0

    def details(self) -> float:
        """Return the work of what only a report shows: a long conversation, on both sides."""
        detail = self._subject.detail
        steps = 0 if detail is None else min(detail.drift_steps, self._subject.window)
        return steps * (self.call(1) + self._token())

    def fp32(self, portion: int) -> float:
        """Return the work of reading a portion of the text, by its number, in fp32; a part of the first twice."""
        sequences = self._subject.text.portions[portion]
        twice = [] if portion else first_sequences(sequences)
        tokens = sum(map(len, [*sequences, *twice]))
        return self.loading() / 3 + tokens * self._token()

    def layer(self, portion: int) -> float:
        """Return one layer's part of that."""
        return self.fp32(portion) / self._subject.config.num_hidden_layers

    def quality(self, runtime: str, sequences: TokenSequences) -> float:
        """Return the work of going over text: token by token, or as drafts."""
        rows = (stop - start for each in sequences for start, stop in pieces(len(each) - 1))
        return sum(self.reading(runtime, count) for count in rows)

    def reading(self, runtime: str, tokens: int) -> float:
        """Return the work of reading so many tokens in a row."""
        most = self._reads[runtime] or 1
        rest = tokens % most
        return tokens // most * self.call(most) + (self.call(rest) if rest else 0.0)

    def questions(self) -> float:
        """Return the work of nano's questions: a prompt and a reply of some ten tokens each."""
        return self._subject.effort.questions * 12 * self.call(4) if self._subject.has_tasks else 0.0

    def _token(self) -> float:
        return 2 * self._parameters / _OPERATIONS
