"""Weights of a WavLM in transformers under the names of this package."""

import torch
from torch import Tensor


def state_dict_from_transformers(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """State dict of ``WavLM`` from that of a WavLM in transformers.

    Written for ``microsoft/wavlm-large`` and models of its kind (feature-extractor norm "layer", no
    convolution bias, stable layer norm). The weight norm of the positional convolution is folded,
    in its older spelling (``weight_g``, ``weight_v``) or the newer (``parametrizations``); query,
    key and value projections become one.

    Parameters
    ----------
    state : state dict of ``WavLMModel`` or, with the prefix ``wavlm.``, of a model built on one.
    num_layers : Transformer layers to keep; later layers and unused tensors are dropped.

    Returns
    -------
    State dict for ``WavLM(...).load_state_dict``, without copies where none are needed.

    Raises
    ------
    KeyError : if a tensor is missing; the message names it.
    ValueError : if the convolutions have biases, which ``WavLM`` has no place for.
    """
    prefix = "wavlm." if any(key.startswith("wavlm.") for key in state) else ""
    conv = f"{prefix}feature_extractor.conv_layers."
    if any(key.startswith(conv) and key.endswith(".conv.bias") for key in state):
        raise ValueError(
            "feature extractor convolutions with bias are not supported; "
            "a WavLM of the kind of microsoft/wavlm-large is needed"
        )
    num_convs = sum(key.startswith(conv) and key.endswith(".conv.weight") for key in state) or 1

    def take(key: str) -> Tensor:
        if prefix + key not in state:
            raise KeyError(
                f"{prefix}{key} is missing from the state dict; a WavLM of the kind of "
                f"microsoft/wavlm-large with at least {num_layers} layers is needed"
            )
        return state[prefix + key]

    mapped = {}
    for ours, theirs in _module_names(num_convs, num_layers).items():
        for kind in ("weight", "bias"):
            mapped[f"{ours}.{kind}"] = take(f"{theirs}.{kind}")
    for i in range(num_convs):
        mapped[f"feature_extractor.layers.{i}.conv.weight"] = take(
            f"feature_extractor.conv_layers.{i}.conv.weight"
        )
    for i in range(num_layers):
        attention = f"encoder.layers.{i}.attention"
        mapped[f"{attention}.gru_rel_pos_const"] = take(f"{attention}.gru_rel_pos_const")
        for kind in ("weight", "bias"):
            qkv = [take(f"{attention}.{part}_proj.{kind}") for part in "qkv"]
            mapped[f"{attention}.qkv_proj.{kind}"] = torch.cat(qkv)
    mapped["encoder.relative_embedding.weight"] = take(
        "encoder.layers.0.attention.rel_attn_embed.weight"
    )

    conv = "encoder.pos_conv_embed.conv"
    if f"{prefix}{conv}.weight_g" in state:
        magnitude, direction = take(f"{conv}.weight_g"), take(f"{conv}.weight_v")
    else:
        magnitude = take(f"{conv}.parametrizations.weight.original0")
        direction = take(f"{conv}.parametrizations.weight.original1")
    # One magnitude per tap: the norm runs over output and input channels.
    norm = direction.norm(dim=(0, 1), keepdim=True)
    mapped["encoder.positional_embedding.conv.weight"] = direction * (magnitude / norm)
    mapped["encoder.positional_embedding.conv.bias"] = take(f"{conv}.bias")
    return mapped


def _module_names(num_convs: int, num_layers: int) -> dict[str, str]:
    """Names of modules with weight and bias: ours to those in transformers."""
    names = {
        "norm": "feature_projection.layer_norm",
        "feature_proj": "feature_projection.projection",
    }
    for i in range(num_convs):
        names[f"feature_extractor.layers.{i}.norm"] = (
            f"feature_extractor.conv_layers.{i}.layer_norm"
        )
    for i in range(num_layers):
        layer = f"encoder.layers.{i}"
        names[f"{layer}.attention_norm"] = f"{layer}.layer_norm"
        names[f"{layer}.attention.gru_rel_pos_linear"] = f"{layer}.attention.gru_rel_pos_linear"
        names[f"{layer}.attention.out_proj"] = f"{layer}.attention.out_proj"
        names[f"{layer}.feed_forward_norm"] = f"{layer}.final_layer_norm"
        names[f"{layer}.feed_forward.in_proj"] = f"{layer}.feed_forward.intermediate_dense"
        names[f"{layer}.feed_forward.out_proj"] = f"{layer}.feed_forward.output_dense"
    return names
