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


def other_form(subject: Subject, decoder: Decoder, tokens: tuple[int, ...]) -> OtherForm:
    """Return what it says to `tokens`, one by one, or why there is none; `decoder` is the quantized model."""
    if not subject.effort.whole:
        return OtherForm(None, LEFT_OUT)
    manifest = subject.artifact.manifest
    form: Literal["explicit", "resident"] = "resident" if manifest.form == "explicit" else "explicit"
    recipe, target = subject.recipe.model_copy(update={"form": form}), targets.find(manifest.target)
    try:
        target.check(recipe, subject.config)
    except RecipeError as error:
        return OtherForm(None, f"there is no {form} form to compare with ({error})")
    with scratch_folder() as folder:
        lowered = target.lower(decoder, recipe, folder, silent)
        other = manifest.model_copy(update={"form": form, **lowered._asdict()})
        session = runtimes.first(other).open_session(folder, other)
        return OtherForm(np.stack([session.decode(token) for token in tokens]))
