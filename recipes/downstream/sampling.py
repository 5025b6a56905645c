"""Speech of a `SpeechLM`: top-p sampling in batches, each row with a seed of its own.

References
----------
.. [1] Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration", arXiv:1904.09751.
.. [2] Della Libera et al., 2025, "FocalCodec", arXiv:2502.04465, appendix D.2.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recipes.downstream.speech_lm import SpeechLM, check_lengths, close_gaps


class Generated(NamedTuple):
    """Tokens of each row.

    toks (L_b, K) int64 each, L_b >= 1; ended (B,) bool, True where the model said that it has come
    to its end, False where a row was cut at the number of tokens that was given.
    """

    toks: list[Tensor]
    ended: Tensor


@torch.no_grad()
def generate(
    model: SpeechLM,
    characters: Tensor,
    *,
    num_chars: Tensor,
    speaker: Tensor,
    max_toks: int | Tensor,
    seeds: Sequence[int],
    num_toks: Tensor | None = None,
    top_p: float = 0.9,
    temperature: float = 1.0,
) -> Generated:
    """Sample speech [1]_.

    What a row becomes depends on its own text, speaker and seed, not on the rows beside it, but for
    what the order of sums of floating point numbers can decide.

    Parameters
    ----------
    model : in evaluation mode.
    characters, num_chars, speaker : as in ``model.forward``.
    max_toks : tokens of each codebook after which a row is cut; >= 1, (B,) int64 for each its own.
    seeds : of each row.
    num_toks : (B,) int64, at least 1 and at most ``max_toks``: exactly so many tokens, the end
        being forbidden before, as in the author's release. None lets the model end; after one
        token at the soonest.
    top_p : only the most probable tokens that together have this probability are drawn, in (0, 1];
        near 0 the most probable one. 0.9 in [2]_.
    temperature : of the softmax; > 0. 1 in [2]_.

    Raises
    ------
    ValueError : as ``model.forward``; if there is another number of seeds than of rows, or a number
        is out of its range; if the longest row would have more than ``max_positions`` positions.
    """
    limits = _limits(num_toks, max_toks=max_toks, characters=characters)
    warp = _warper(top_p=top_p, temperature=temperature)
    uniforms = _uniforms(seeds, max_toks=int(limits.max()), model=model, like=characters)
    prompt, mask = model.prompt(characters, num_chars=num_chars, speaker=speaker)
    model.check_fits(num_chars, limits)
    decoder = _CachedDecoder(model.decoder)
    x = decoder(*close_gaps(prompt, mask=mask, at_end=True))
    lengths, steps = limits.clone(), []
    for step, uniform in enumerate(uniforms):
        scores = model.logits(x)
        if num_toks is not None or step == 0:
            scores[:, 0, -1] = -torch.inf
        drawn = draw(warp(scores), uniform=uniform)
        ends = (drawn[:, 0] == model.codebook_size) & (step < lengths)
        lengths = lengths.masked_fill(ends, step)
        steps.append(drawn.masked_fill((step >= lengths)[:, None], 0))
        if int(lengths.max()) <= step + 1:
            break
        x = decoder(model.tok_embedding(steps[-1][:, None]))
    toks = torch.stack(steps, dim=1).unbind()
    rows = [row[:length] for row, length in zip(toks, lengths.tolist(), strict=True)]
    return Generated(rows, lengths < limits)


def draw(scores: Tensor, *, uniform: Tensor) -> Tensor:
    """Draw classes: the inverse of their cumulated probabilities.

    With one number for a draw, all those of a row are known before, on any device.

    Parameters
    ----------
    scores : (..., classes) logits; a class at -inf is never drawn.
    uniform : (...) float32 in [0, 1).

    Returns
    -------
    (...) int64.
    """
    # In float64: a float32 sum over thousands of classes is rounded by as much as the rarest have.
    levels = scores.double().softmax(dim=-1).cumsum(dim=-1)
    thresholds = uniform.double()[..., None] * levels[..., -1:]
    return torch.searchsorted(levels, thresholds, right=True)[..., 0]


class _CachedDecoder:
    """Llama step by step: keeps keys and values, and where each row's padding on the left ends.

    Parameters
    ----------
    decoder : a ``LlamaModel`` of transformers.
    """

    def __init__(self, decoder: nn.Module) -> None:
        from transformers import DynamicCache

        self.decoder = decoder
        names = inspect.signature(decoder.forward).parameters
        # transformers has shortened the argument's name, between 5.17 and 5.24.
        name = "cache" if "cache" in names else "past_key_values"
        self.cache = {name: DynamicCache(config=decoder.config)}
        self.mask: Tensor | None = None

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, dim) behind the last of the vectors (B, N, dim) to add; a first call has a mask."""
        mask = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], dim=1)
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -x.shape[1] :]
        hidden = self.decoder(
            inputs_embeds=x,
            attention_mask=self.mask.long(),
            position_ids=positions,
            use_cache=True,
            **self.cache,
        )
        return hidden[0][:, -1]


def _warper(*, top_p: float, temperature: float) -> Callable[[Tensor], Tensor]:
    """Temperature, then top-p, on (B, K, classes)."""
    if not 0 < top_p <= 1 or not temperature > 0:
        raise ValueError(
            "top_p must be in (0, 1] and temperature above 0, near 0 for the most probable tokens, "
            f"got {top_p} and {temperature}"
        )
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(float(temperature)), TopPLogitsWarper(top_p)]
    )
    return lambda scores: warpers(None, scores.flatten(0, 1)).view_as(scores)


def _uniforms(seeds: Sequence[int], *, max_toks: int, model: SpeechLM, like: Tensor) -> Tensor:
    """(max_toks, B, K) numbers in [0, 1), those of a row from its seed."""
    if len(seeds) != len(like):
        raise ValueError(f"seeds must be one for each of {len(like)} rows, got {len(seeds)}")
    rows = [
        torch.rand(max_toks, model.num_codebooks, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(rows, dim=1).to(like.device)


def _limits(num_toks: Tensor | None, *, max_toks: int | Tensor, characters: Tensor) -> Tensor:
    """(B,) tokens at which each row is cut."""
    limits = torch.as_tensor(max_toks, device=characters.device).expand(len(characters))
    if int(limits.min()) < 1:
        raise ValueError(f"max_toks must be at least 1, got {limits.min()}")
    if num_toks is None:
        return limits
    sizes = {"num_rows": len(characters), "shortest": 1, "longest": int(limits.max())}
    check_lengths(num_toks, **sizes, name="num_toks")
    return num_toks
