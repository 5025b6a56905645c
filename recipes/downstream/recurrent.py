"""The shallow models of the discriminative tasks: a BiLSTM over tokens, and two heads.

Shallow so that they show what tokens hold rather than what a network can make of them (paper,
section 4.5 and appendix D.2).
"""

import torch
from torch import Tensor, nn

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
        sizes = [hidden_dim, *[self.output_dim] * (num_layers - 1)]
        self.ahead, self.back = (
            nn.ModuleList(nn.LSTM(size, hidden_dim, batch_first=True) for size in sizes)
            for _ in range(2)
        )

    def forward(self, toks: Tensor, *, mask: Tensor) -> Tensor:
        """(B, L, K) tokens to (B, L, 2 hidden_dim); padding, ``mask`` False, enters nothing."""
        x = self.embedding(toks, mask=mask)
        order = reversed_order(mask)[..., None]
        for ahead, back in zip(self.ahead, self.back, strict=True):
            x = self.dropout(x)
            turned = back(x.gather(1, order.expand_as(x)))[0]
            x = torch.cat([ahead(x)[0], turned.gather(1, order.expand_as(turned))], dim=2)
        return zero_padding(x, mask=mask)


def reversed_order(mask: Tensor) -> Tensor:
    """(B, L) positions that turn each row of (B, L) real steps round and leave its padding.

    A direction of an LSTM that begins at the end of each row is one that runs ahead over rows
    turned round. PyTorch's packed sequences give the same and wait for the device; on a CPU their
    backward took 14 times as long (8 rows of 300 steps, 128 channels).
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(dim=1, keepdim=True) - 1 - steps, steps)


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
