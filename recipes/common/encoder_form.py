"""The form of an encoder: what its weights do not show, and two encoders must share to share them.

WavLM with full context and every causal one, whatever its window or look-ahead, have weights of the
same names and shapes. A run that trains a student writes its form into ``run.json``.
"""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from focalcodec import hub


def form_of(encoder: nn.Module) -> dict[str, Any]:
    """Class and constructor arguments as JSON values, without dropout, which trains alone."""
    arguments = hub.constructor_arguments(encoder)
    arguments.pop("dropout", None)
    return json.loads(json.dumps({"class": type(encoder).__name__, **arguments}, default=repr))


def check_form(encoder: nn.Module, description: Mapping[str, Any], *, where: str) -> None:
    """Refuse an encoder that is not of the form of the student that a run trained.

    Parameters
    ----------
    encoder : module that shall get the student's weights, or has them.
    description : the run's ``run.json``; without a student's form it allows every encoder.
    where : which run and whose encoder, as "RUN (student_checkpoint)".

    Raises
    ------
    ValueError : if an argument of the two differs.
    """
    ours, theirs = form_of(encoder), description.get("student_form", {})
    differing = [key for key, value in theirs.items() if ours.get(key) != value]
    if differing:
        trained, given = (
            ", ".join(f"{key} {form.get(key)}" for key in differing) for form in (theirs, ours)
        )
        raise ValueError(
            f"{where} trained a student with {trained}, and the encoder that shall have its "
            f"features has {given}; take the same encoder block in all stages, or train the "
            "student anew with this one"
        )
