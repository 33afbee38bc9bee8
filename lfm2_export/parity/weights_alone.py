"""The stored weights alone: the same files with activations and KV cache in fp32, where rounding hides no small fault.

The model's answers come first, since it and the session, both in fp32, are not in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lfm2_export import runtimes
from lfm2_export.parity.cases import Case
from lfm2_export.parity.effort import LEFT_OUT
from lfm2_export.parity.lowering import case_distance, over_all
from lfm2_export.parity.question_1 import Model
from lfm2_export.parity.report import RuntimeReport
from lfm2_export.parity.subject import Subject
from lfm2_export.parity.truth import Answer, EagerTruth, answer
from lfm2_export.parity.work import Work
from lfm2_export.quantize.unpack import without_rounding

Answers = Mapping[str, Sequence[Answer]]  # by runtime


def unrounded_answers(
    subject: Subject,
    work: Work,
    model: Model,
    reports: Sequence[RuntimeReport],
    cases_of: Mapping[str, Sequence[Case]],
) -> Answers:
    """Return what the model says to the cases of each runtime that can be asked when nothing but weights is rounded.

    The model's activations are left unrounded from then on.
    """
    if not subject.rounds or model.stored is not None or not subject.effort.whole:
        return {}
    able = [report.runtime for report in reports if runtimes.find(report.runtime).judges_weights]
    if not able:
        return {}
    what = f"{', '.join(able)}: the stored weights, with activations in float"
    subject.progress(what, sum(map(work.weights_alone, able)))
    every = [case for name in able for case in cases_of[name]]
    truth = EagerTruth(without_rounding(model.decoder), subject.window, every)
    return {name: [truth.answer(case) for case in cases_of[name]] for name in able}


def weights_alone(
    subject: Subject,
    stored: float | None,
    reports: Sequence[RuntimeReport],
    cases_of: Mapping[str, Sequence[Case]],
    expected: Answers,
) -> None:
    """Fill in each runtime's error of the stored weights, or why there is none: long runs of steps are read as drafts.

    `stored` is the share of them that are not the model's, where the target can say.
    """
    for report in reports if subject.rounds else ():
        report.weights_error = stored
        if stored is None:
            report.weights_error, report.weights_reason = _error(subject, report.runtime, cases_of, expected)


def _error(
    subject: Subject, name: str, cases_of: Mapping[str, Sequence[Case]], expected: Answers
) -> tuple[float | None, str | None]:
    if not subject.effort.whole:
        return None, LEFT_OUT
    session = runtimes.find(name).weights_session(subject.artifact.folder, subject.artifact.manifest)
    if session is None:
        return None, "this runtime cannot leave the activations in float"
    pairs = zip(cases_of[name], expected[name], strict=True)
    return over_all(
        [case_distance(case, answer(session, case, drafts=True), said) for case, said in pairs]
    ).max_error, None
