"""Speech tokens after a speaker and a text, one after the other: a Llama decoder.

A row is ``[speaker] [characters] [begin] [tokens]`` without padding between its pieces. `forward`
predicts every token and the end from what stands before; `recipes.downstream.sampling` generates.

References
----------
.. [1] Della Libera et al., 2025, "FocalCodec", arXiv:2502.04465, appendix D.2.
.. [2] Grattafiori et al., 2024, "The Llama 3 Herd of Models", arXiv:2407.21783.
"""

from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalcodec.masking import lengths_to_mask, zero_padding
from recipes.downstream.embedding import TokenEmbedding, check_toks
from recipes.downstream.token_losses import token_cross_entropy

_Count = TypeVar("_Count", int, Tensor)


class Prediction(NamedTuple):
    """What is said of each next step, and what it is.

    logits (B, L + 1, K, codebook_size + 1) of the L tokens and the end, which is the last class and
    -inf in all codebooks but the first; toks (B, L + 1, K) int64; mask (B, L + 1, K), True for what
    is to be predicted: real tokens, and the end in the first codebook.
    """

    logits: Tensor
    toks: Tensor
    mask: Tensor

    def loss(self) -> Tensor:
        """Cross-entropy in nats, mean over real tokens and ends."""
        return token_cross_entropy(self.logits, self.toks, mask=self.mask)


class SpeechLM(nn.Module):
    """Llama decoder [2]_ on speaker vectors, characters and the tokens of a codec [1]_.

    The tokens of a step are predicted at once by a head for each codebook, and the next step reads
    the sum that `TokenEmbedding` makes of them; the first head also predicts the end. Llama itself
    has dropout on attention weights alone; here it is on the vectors that it reads, too.

    Parameters
    ----------
    codebooks : (K, codebook_size, H) vectors of the codec's tokens, where the embedding starts.
    num_characters : characters are in [0, num_characters).
    speaker_dim : channels of speaker vectors.
    num_layers, num_heads, num_kv_heads, ffn_dim : of the decoder.
    dim : channels of the decoder.
    rope_theta : base of the rotary positions.
    dropout : probability on attention weights and on what the decoder reads.
    max_positions : the most a row may have, see `num_positions`.

    Attributes
    ----------
    num_codebooks, codebook_size : K, and tokens are in [0, codebook_size).

    Raises
    ------
    ValueError : if ``codebooks`` have another shape; and what transformers raises for sizes that do
        not fit each other.
    """

    def __init__(
        self,
        codebooks: Tensor,
        *,
        num_characters: int,
        speaker_dim: int,
        num_layers: int = 12,
        dim: int = 512,
        num_heads: int = 4,
        num_kv_heads: int = 1,
        ffn_dim: int = 2048,
        rope_theta: float = 10000.0,
        dropout: float = 0.1,
        max_positions: int = 4096,
    ) -> None:
        super().__init__()
        self.num_characters = num_characters
        self.speaker_dim = speaker_dim
        self.dropout = dropout
        self.max_positions = max_positions
        self.tok_embedding = TokenEmbedding(codebooks, dim=dim)
        self.num_codebooks = self.tok_embedding.num_codebooks
        self.codebook_size = self.tok_embedding.codebook_size
        self.speaker_proj = nn.Linear(speaker_dim, dim)
        self.character_embedding = nn.Embedding(num_characters, dim)
        self.begin = nn.Parameter(torch.randn(dim))
        self.decoder = _llama(
            hidden_size=dim,
            intermediate_size=ffn_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            max_position_embeddings=max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            attention_dropout=dropout,
        )
        self.heads = nn.Linear(dim, self.num_codebooks * self.codebook_size)
        self.end_head = nn.Linear(dim, 1)

    def forward(
        self,
        characters: Tensor,
        *,
        num_chars: Tensor,
        speaker: Tensor,
        toks: Tensor,
        num_toks: Tensor,
    ) -> Prediction:
        """Predict every token and the end from what stands before.

        Parameters
        ----------
        characters : (B, U) int64 in [0, num_characters); padding may hold anything.
        num_chars : (B,) int64, real characters of each row; 0 for an empty text.
        speaker : (B, speaker_dim) float.
        toks : (B, L, K) int64 in [0, codebook_size); padding may hold anything.
        num_toks : (B,) int64, real tokens of each row.

        Raises
        ------
        ValueError : if a shape or type does not fit, a length is out of range, or a row has more
            than ``max_positions`` positions.
        IndexError : if a real character or token is out of range.
        """
        check_toks(toks, num_codebooks=self.num_codebooks)
        num_rows, longest = toks.shape[:2]
        check_lengths(num_toks, num_rows=num_rows, longest=longest, name="num_toks")
        prompt, prompt_mask = self.prompt(characters, num_chars=num_chars, speaker=speaker)
        self.check_fits(num_chars, num_toks)
        tok_mask = lengths_to_mask(num_toks, longest)
        x = torch.cat([prompt, self.tok_embedding(toks, mask=tok_mask)], dim=1)
        x, mask = close_gaps(x, mask=torch.cat([prompt_mask, tok_mask], dim=1))
        x = F.dropout(x, self.dropout, self.training)
        x = self.decoder(inputs_embeds=x, attention_mask=mask.long(), use_cache=False)[0]
        steps = torch.arange(longest + 1, device=x.device)
        # A row's first token is predicted where it has begun; what lies behind its end is masked.
        index = (num_chars[:, None] + 1 + steps).clamp(max=x.shape[1] - 1)
        x = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))  # (B, L + 1, dim)
        return Prediction(self.logits(x), *self._targets(toks, num_toks))

    def prompt(
        self, characters: Tensor, *, num_chars: Tensor, speaker: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors (B, U + 2, dim) of what stands before the tokens, and the mask of real ones.

        Parameters and errors are those of `forward`. Between a row's characters and its begin lies
        their padding.
        """
        self._check_text(characters, speaker)
        num_rows, longest = characters.shape
        check_lengths(num_chars, num_rows=num_rows, longest=longest, name="num_chars")
        mask = lengths_to_mask(num_chars, longest)
        embedded = self.character_embedding(characters.masked_fill(~mask, 0))
        begin = self.begin.expand(num_rows, 1, -1)
        x = [self.speaker_proj(speaker)[:, None], zero_padding(embedded, mask=mask), begin]
        return torch.cat(x, dim=1), F.pad(mask, (1, 1), value=True)

    def logits(self, x: Tensor) -> Tensor:
        """(..., K, codebook_size + 1) float32 of the decoder's (..., dim); see `Prediction`."""
        toks = self.heads(x).float().unflatten(-1, (self.num_codebooks, self.codebook_size))
        end = self.end_head(x).float()[..., None]  # (..., 1, 1)
        end = F.pad(end, (0, 0, 0, self.num_codebooks - 1), value=-torch.inf)
        return torch.cat([toks, end], dim=-1)

    def num_positions(self, num_chars: _Count, num_toks: _Count) -> _Count:
        """Positions of a row: its speaker, characters, begin and tokens."""
        return num_chars + num_toks + 2

    def fits(self, num_chars: int, num_toks: int) -> bool:
        """Tell whether a row has at most ``max_positions``."""
        return self.num_positions(num_chars, num_toks) <= self.max_positions

    def check_fits(self, num_chars: Tensor, num_toks: Tensor) -> None:
        """Refuse rows that are too long; both (B,) int64.

        Raises
        ------
        ValueError : if a row has more than ``max_positions`` positions.
        """
        longest = int(self.num_positions(num_chars, num_toks).max())
        if longest > self.max_positions:
            raise ValueError(
                f"a row of speaker, characters, begin and tokens has {longest} positions, but "
                f"max_positions is {self.max_positions}; leave out what `fits` says is too long, "
                "or raise max_positions"
            )

    def _targets(self, toks: Tensor, num_toks: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L + 1, K) with the end behind a row's last, and the mask of both."""
        steps = torch.arange(toks.shape[1] + 1, device=toks.device)[:, None]
        last = num_toks[:, None, None]
        first = torch.arange(self.num_codebooks, device=toks.device) == 0
        is_end = steps == last
        toks = F.pad(toks, (0, 0, 0, 1)).masked_fill(is_end, self.codebook_size)
        return toks, (steps < last) | (is_end & first)

    def _check_text(self, characters: Tensor, speaker: Tensor) -> None:
        if characters.ndim != 2 or characters.dtype != torch.int64:
            raise ValueError(
                "characters must be (B, U) int64, got "
                f"{characters.dtype} of shape {tuple(characters.shape)}"
            )
        if speaker.shape != (len(characters), self.speaker_dim):
            raise ValueError(
                f"speaker must be ({len(characters)}, {self.speaker_dim}), one vector for each "
                f"row of characters, got {tuple(speaker.shape)}"
            )


def close_gaps(x: Tensor, *, mask: Tensor, at_end: bool = False) -> tuple[Tensor, Tensor]:
    """Move what is real together, in its order.

    Parameters
    ----------
    x : (B, N, dim), 0 where ``mask`` is False.
    mask : (B, N) bool.
    at_end : to the right end of each row instead of the left.

    Returns
    -------
    x and mask of the longest row's length, padded on one side with 0.
    """
    order = (mask if at_end else ~mask).to(torch.int8).argsort(dim=1, stable=True)
    longest = int(mask.sum(dim=1).max())
    order = order[:, -longest:] if at_end else order[:, :longest]
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2])), mask.gather(1, order)


def check_lengths(
    lengths: Tensor, *, num_rows: int, longest: int, shortest: int = 0, name: str
) -> None:
    """Refuse what are no absolute lengths of the rows of a batch.

    Raises
    ------
    ValueError : if they are not (num_rows,) int64 in [shortest, longest].
    """
    if lengths.shape != (num_rows,) or lengths.dtype != torch.int64:
        raise ValueError(
            f"{name} must be ({num_rows},) int64, absolute lengths, "
            f"got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if not bool(((lengths >= shortest) & (lengths <= longest)).all()):
        raise ValueError(f"{name} must be in [{shortest}, {longest}], got {lengths.tolist()}")


def _llama(**sizes) -> nn.Module:
    """Make the decoder of transformers, without its own table of tokens."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(vocab_size=1, bos_token_id=None, eos_token_id=None, **sizes)
    decoder = LlamaModel(config)
    # Unused weights would stop DistributedDataParallel.
    decoder.set_input_embeddings(None)
    return decoder
