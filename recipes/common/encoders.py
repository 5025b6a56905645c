"""Weights of the frozen encoder and of its student, and whose features an encoder gives.

A student gives its teacher's features, as well as it can; so a decoder that was trained on the
teacher's decodes the student's.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from focalcodec import hub
from recipes.common.encoder_form import check_form
from recipes.common.fingerprint import fingerprint
from recipes.common.run_folder import read_description
from recipes.common.weights import load_parameters, refuse_missing_run

logger = logging.getLogger(__name__)


def load_encoder(
    encoder: torch.nn.Module, checkpoint: str | None, *, name: str = "encoder"
) -> None:
    """Fill the frozen encoder with weights; an encoder without weights (log-mel) needs none.

    Parameters
    ----------
    encoder : to fill in place.
    checkpoint : what ``focalcodec.hub.load_encoder_weights`` takes, the run folder of a stage that
        trains a student, or "random": weights drawn from a fixed seed, the same in all stages, for
        trials and tests.
    name : of the encoder in the YAML, whose ``<name>_checkpoint`` the messages name.

    Raises
    ------
    FileNotFoundError, RuntimeError : if there is no such run, or it has no complete checkpoint of a
        student.
    ValueError : if the encoder has weights and no checkpoint is named, or they are of another size
        or of a student of another form.
    """
    if not any(True for _ in encoder.parameters()):
        return
    if checkpoint is None:
        raise ValueError(
            f"{name} {type(encoder).__name__} has weights but {name}_checkpoint is null; name a "
            "hub id such as microsoft/wavlm-large, a local folder or file, or random"
        )
    description = read_description(Path(checkpoint))
    if checkpoint == "random":
        logger.warning("%s_checkpoint is random: the features carry no pretrained knowledge", name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = type(encoder)(**hub.constructor_arguments(encoder))
        encoder.load_state_dict(fresh.state_dict())
    elif description is not None:
        check_form(encoder, description, where=f"{checkpoint} ({name}_checkpoint)")
        error = "reconstruction" if "quantizer" in description["parameters"] else "distillation"
        load_parameters(encoder, checkpoint, name="student", min_key=error)
    else:
        refuse_missing_run(checkpoint, key=f"{name}_checkpoint")
        hub.load_encoder_weights(encoder, checkpoint)


def load_student(
    student: torch.nn.Module, checkpoint: str | None, *, encoder: torch.nn.Module
) -> None:
    """Fill a student before its training: as `load_encoder`, or with its teacher's weights.

    Parameters
    ----------
    student : causal encoder, to fill in place.
    checkpoint : the YAML's ``student_checkpoint``; None for the weights of ``encoder``.
    encoder : the frozen teacher, filled.

    Raises
    ------
    FileNotFoundError, RuntimeError, ValueError : as `load_encoder`.
    """
    if checkpoint is None:
        where = "student_checkpoint is null, so the student begins with the encoder's weights and"
        hub.load_strict(student, encoder.state_dict(), where=f"{where} must have its size; it")
    else:
        load_encoder(student, checkpoint, name="student")


def feature_space(encoder: torch.nn.Module, checkpoint: str | None) -> str:
    """Fingerprint of the encoder whose features these are: its own, or its teacher's.

    Parameters
    ----------
    encoder : frozen, filled.
    checkpoint : where its weights are from; a student's run folder names its teacher.
    """
    description = None if checkpoint is None else read_description(Path(checkpoint))
    return fingerprint(encoder) if description is None else features_of(description)


def features_of(description: dict[str, Any]) -> str:
    """`feature_space` of a run, from its ``run.json``."""
    return description.get("features", description["encoder"])  # runs before students had none
