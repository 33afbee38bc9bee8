"""The form that an artifact is not, for the law that both say the same: lowered here, run by its own runtime."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lfm2_export import runtimes, targets
from lfm2_export.errors import RecipeError
from lfm2_export.files import scratch_folder
from lfm2_export.model.decoder import Decoder
from lfm2_export.parity.effort import LEFT_OUT
from lfm2_export.parity.laws import OtherForm
from lfm2_export.parity.subject import Subject
from lfm2_export.progress import silent
from lfm2_export.recipes import Recipe


def none_because(subject: Subject) -> str | None:
    """Return why there is no other form to compare with; None where there is one."""
    if not subject.effort.whole:
        return LEFT_OUT
    recipe = _recipe(subject)
    try:
        targets.find(recipe.target).check(recipe, subject.config)
    except RecipeError as error:
        return f"there is no {recipe.form} form to compare with ({error})"
    return None


def other_form(subject: Subject, decoder: Decoder) -> OtherForm:
    """Return what it says to a law's tokens, one by one, or why there is none; `decoder` is the quantized model."""
    if (reason := none_because(subject)) is not None:
        return OtherForm(None, reason)
    manifest, recipe = subject.artifact.manifest, _recipe(subject)
    with scratch_folder() as folder:
        lowered = targets.find(recipe.target).lower(decoder, recipe, folder, silent)
        other = manifest.model_copy(update={"form": recipe.form, **lowered._asdict()})
        session = runtimes.first(other).open_session(folder, other)
        if before := subject.before_spoken:
            session.prefill(before)
        return OtherForm(np.stack([session.decode(token) for token in subject.spoken]))


def _recipe(subject: Subject) -> Recipe:
    form: Literal["explicit", "resident"] = "resident" if subject.recipe.form == "explicit" else "explicit"
    return subject.recipe.model_copy(update={"form": form})
