"""The shallow models of the discriminative tasks: a BiLSTM over tokens, and two heads.

Shallow so that they show what tokens hold rather than what a network can make of them (paper,
section 4.5 and appendix D.2).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from focalcodec.masking import zero_padding
from recipes.downstream.embedding import TokenEmbedding

_MIN_VARIANCE = 1e-5  # so that a constant channel, or a single token, has a gradient


class BiLSTM(nn.Module):
    """Bidirectional LSTM over embedded tokens.

    Parameters
    ----------
    codebooks : (K, codebook_size, H) vectors that the embedding starts from.
    hidden_dim : of the embedding and of each direction.
    num_layers : of the LSTM.
    dropout : probability, behind the embedding and between the layers.
    """

    def __init__(
        self, codebooks: Tensor, *, hidden_dim: int = 512, num_layers: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.output_dim = 2 * hidden_dim
        self.embedding = TokenEmbedding(codebooks, dim=hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            hidden_dim,
            hidden_dim,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=True,
            batch_first=True,
        )

    def forward(self, toks: Tensor, *, mask: Tensor) -> Tensor:
        """(B, L, K) tokens to (B, L, 2 hidden_dim); padding, ``mask`` False, enters nothing."""
        x = self.dropout(self.embedding(toks, mask=mask))
        packed = pack_padded_sequence(
            x, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False
        )
        x, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return zero_padding(x, mask=mask)


class Recognizer(nn.Module):
    """CTC over a BiLSTM.

    Parameters
    ----------
    codebooks : (K, codebook_size, H).
    num_units : of text, 0 being the blank.
    kwargs : of `BiLSTM`.
    """

    def __init__(self, codebooks: Tensor, *, num_units: int, **kwargs: float) -> None:
        super().__init__()
        self.trunk = BiLSTM(codebooks, **kwargs)
        self.head = nn.Linear(self.trunk.output_dim, num_units)

    def forward(self, toks: Tensor, *, mask: Tensor) -> Tensor:
        """(B, L, K) tokens to (B, L, num_units) log probabilities, float32."""
        return self.head(self.trunk(toks, mask=mask)).float().log_softmax(dim=-1)


class Classifier(nn.Module):
    """One label an utterance: mean and standard deviation of a BiLSTM's output, and a linear map.

    Parameters
    ----------
    codebooks : (K, codebook_size, H).
    num_labels : classes.
    dropout : also in front of the linear map.
    kwargs : of `BiLSTM`.
    """

    def __init__(
        self, codebooks: Tensor, *, num_labels: int, dropout: float = 0.1, **kwargs: int
    ) -> None:
        super().__init__()
        self.trunk = BiLSTM(codebooks, dropout=dropout, **kwargs)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * self.trunk.output_dim, num_labels)

    def forward(self, toks: Tensor, *, mask: Tensor) -> Tensor:
        """(B, L, K) tokens to (B, num_labels) logits, float32."""
        return self.head(self.dropout(pool(self.trunk(toks, mask=mask), mask=mask))).float()


def pool(x: Tensor, *, mask: Tensor) -> Tensor:
    """Statistics over real steps: (B, L, C) to (B, 2 C), means and standard deviations.

    A single step has the smallest deviation, not NaN as in SpeechBrain's ``StatisticsPooling``.
    """
    share = (mask / mask.sum(dim=1, keepdim=True)).to(x.dtype)[..., None]
    mean = (x * share).sum(dim=1)
    variance = ((x - mean[:, None]).square() * share).sum(dim=1)
    return torch.cat([mean, variance.clamp_min(_MIN_VARIANCE).sqrt()], dim=1)
