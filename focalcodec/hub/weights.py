"""Weights in files: read without trusting the file, loaded without exceptions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from focalcodec.hub.arguments import Where, shown

_PRECISIONS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of one file, safetensors or a pickle.

    Pickles are read as tensors and nothing else: none of their code is run.

    Parameters
    ----------
    path : file; the suffix .safetensors tells which it is.

    Returns
    -------
    Tensors by name, on the CPU.

    Raises
    ------
    ValueError : if the file is damaged or holds anything but tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged or not a file of weights: {reason}") from error
    except OSError:
        raise
    except Exception as error:  # what a damaged pickle makes of itself can be anything
        raise ValueError(
            f"{path} is damaged or not a file of weights alone: {type(error).__name__}"
        ) from error
    if not _is_state(state):
        raise ValueError(f"{path} is not a state dict of tensors")
    return state


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, where: Where) -> None:
    """Load weights into a module, in place; nothing may be missing, left over or of another shape.

    A module that refuses the weights keeps those it has. Floating point weights of another
    precision are converted to the module's.

    Parameters
    ----------
    module : module to fill.
    state : weights by name, as of ``module.state_dict()``.
    where : where they come from; every message names it.

    Raises
    ------
    ValueError : if the weights do not fit exactly, or are not finite.
    """
    check_fit(module.state_dict(), state, where=where)
    module.load_state_dict(state)


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, where: Where) -> None:
    """Compare weights with those they shall replace, as `load_strict`, and load nothing.

    Parameters
    ----------
    own : weights by name, of which only shapes and types count; they may be on the meta device.
    state, where : as in `load_strict`.

    Raises
    ------
    ValueError : if the weights do not fit exactly, or are not finite.
    """
    if not _is_state(state):
        raise ValueError(f"{where} does not fit: it is not a state dict of tensors")
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing:
        raise ValueError(
            f"{where} does not fit: it lacks {len(missing)} of {len(own)} weights, "
            f"the first is {missing[0]}"
        )
    if unexpected:
        raise ValueError(
            f"{where} does not fit: it has {len(unexpected)} weights with no place, "
            f"the first is {shown(unexpected[0])}"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{where} does not fit: it has {key} of shape {tuple(value.shape)}, "
                f"but the configuration asks for {tuple(own[key].shape)}"
            )
        dtypes = _PRECISIONS if own[key].is_floating_point() else {own[key].dtype}
        if value.dtype not in dtypes:
            raise ValueError(
                f"{where} does not fit: it has {key} of {value.dtype}, "
                f"which does not become {own[key].dtype}"
            )
        # One NaN among a codec's weights makes every token 0, without a word.
        if not _is_finite(value.to(own[key].dtype)):
            raise ValueError(
                f"{where} does not fit: {key} holds values that are not finite numbers of "
                f"{own[key].dtype}; the training has diverged or the file is damaged"
            )


def _is_state(state: Any) -> bool:
    return isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) and _is_in_memory(value)
        for key, value in state.items()
    )


def _is_in_memory(value: Tensor) -> bool:
    """Whether every entry is stored: a pickle can hold a shape without the memory for it."""
    if value.layout != torch.strided or value.is_meta or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or value.numel() == 0:
        return True
    # The extremes are NaN if anything is; tens of times faster than isfinite of every entry.
    return bool(torch.stack(value.aminmax()).isfinite().all())
