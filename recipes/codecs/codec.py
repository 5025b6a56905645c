"""What a codec is to evaluation and downstream tasks: signals to tokens and back.

An adapter for one codec derives from `Codec` and writes the ``_x_to_y`` methods, which see one
utterance at a time, so that what stands beside an utterance can never change its tokens, whatever
the package behind the adapter does about padding.

========== ============= ======================================================================
name       shape         meaning
========== ============= ======================================================================
``sig``    (B, T)        signal at ``sample_rate``; decoded at ``sample_rate_output``
``toks``   (B, L, K)     int64 tokens of K codebooks, the most important first
``feats``  (B, N, H)     continuous features right before the decoder, not quantized
``qfeats`` (B, N, H)     the same features decoded from tokens
========== ============= ======================================================================
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from focalcodec.checks import check_finite, check_mono
from focalcodec.masking import num_valid
from focalcodec.stream import Stream


class Resynthesis(NamedTuple):
    """What a codec makes of a signal: decoded signal (B, T') and the tokens (B, L, K) between."""

    sig: Tensor
    toks: Tensor


class Codec(nn.Module):
    """One codec with its weights, in evaluation mode.

    Attributes
    ----------
    name : to print, such as ``FocalCodec@50``.
    model_id : where the weights come from: a hub id, or the name of a folder.
    sample_rate : Hz of signals to encode.
    sample_rate_output : Hz of decoded signals.
    token_rate : Hz, of each codebook.
    num_codebooks : K.
    codebook_size : tokens are in [0, codebook_size), in every codebook.
    has_feats : whether the codec has features in front of its decoder that nearest neighbours can
        be searched in (``sig_to_feats``, ``toks_to_qfeats``, ``feats_to_sig``).
    latency_ms : of the live streams of a causal codec (``open_stream``); None for any other.
    """

    name: str
    model_id: str
    sample_rate: int
    sample_rate_output: int
    token_rate: float
    num_codebooks: int
    codebook_size: int
    has_feats: bool = False
    latency_ms: float | None = None

    # To be written by an adapter; all on one utterance, on the device of the codec

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        """Tokens (1, L, K) of a signal (1, T)."""
        raise NotImplementedError

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        """Signal (1, T') of tokens (1, L, K)."""
        raise NotImplementedError

    def _sig_to_feats(self, sig: Tensor) -> Tensor:
        """Continuous features (1, N, H) of a signal (1, T)."""
        raise NotImplementedError

    def _toks_to_qfeats(self, toks: Tensor) -> Tensor:
        """Features (1, N, H) of tokens (1, L, K)."""
        raise NotImplementedError

    def _feats_to_sig(self, feats: Tensor) -> Tensor:
        """Signal (1, T') of features (1, N, H)."""
        raise NotImplementedError

    def embeddings(self) -> Tensor:
        """(K, codebook_size, H) vector of every token of every codebook, as in the codebook."""
        raise NotImplementedError

    def open_stream(self) -> Stream:
        """Live stream of a causal codec."""
        raise NotImplementedError

    # For users

    @property
    def bitrate(self) -> float:
        """Bits per second of all codebooks together."""
        return self.token_rate * self.num_codebooks * math.log2(self.codebook_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def samples_per_tok(self) -> int:
        """Input samples of one token of each codebook."""
        return round(self.sample_rate / self.token_rate)

    def num_samples_output(self, num_samples: int) -> int:
        """Output samples that last as long as ``num_samples`` input samples, rounded down."""
        return num_samples * self.sample_rate_output // self.sample_rate

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode, whatever the module around it does."""
        return super().train(False)

    @torch.no_grad()
    def sig_to_toks(self, sig: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Encode.

        Parameters
        ----------
        sig : (B, T) at `sample_rate`, on the codec's device.
        lens : (B,) relative lengths; None where nothing is padded.

        Returns
        -------
        (B, L, K) int64; rows that have fewer tokens end in 0.

        Raises
        ------
        ValueError : if ``sig`` is no batch of mono signals, has no samples or values that are not
            finite, or ``lens`` are no fractions.
        """
        return _joined([self._sig_to_toks(row) for row in self._sig_rows(sig, lens)])

    @torch.no_grad()
    def sigs_to_toks(self, sigs: Sequence[Tensor]) -> list[Tensor]:
        """Encode signals of any lengths; each as `sig_to_toks` encodes it alone, to the last token.

        Here one after the other; a codec whose model is not changed by padding does better.

        Parameters
        ----------
        sigs : (T,) each, at `sample_rate`, on the codec's device.

        Returns
        -------
        (L, K) int64 of each signal.

        Raises
        ------
        ValueError : as `sig_to_toks` does.
        """
        return [self.sig_to_toks(sig[None])[0] for sig in sigs]

    @torch.no_grad()
    def toks_to_sig(
        self, toks: Tensor, *, lens: Tensor | None = None, num_samples: int | None = None
    ) -> Tensor:
        """Decode.

        Parameters
        ----------
        toks : (B, L, K) int64 in [0, codebook_size).
        lens : (B,) relative lengths.
        num_samples : cut or zero-pad what is decoded to so many samples; None = as decoded.

        Returns
        -------
        (B, T') at `sample_rate_output`, 0 past each row's end.

        Raises
        ------
        ValueError : if ``toks`` have another shape or type, are out of range, or ``lens`` are no
            fractions.
        """
        sigs = [self._toks_to_sig(row) for row in self._toks_rows(toks, lens)]
        return fit(_joined(sigs), num_samples)

    @torch.no_grad()
    def sig_to_feats(self, sig: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Continuous features (B, N, H) in front of the decoder; arguments as `sig_to_toks`."""
        self._check_has_feats()
        return _joined([self._sig_to_feats(row) for row in self._sig_rows(sig, lens)])

    @torch.no_grad()
    def toks_to_qfeats(self, toks: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Features (B, N, H) of tokens; arguments as `toks_to_sig`."""
        self._check_has_feats()
        return _joined([self._toks_to_qfeats(row) for row in self._toks_rows(toks, lens)])

    @torch.no_grad()
    def feats_to_sig(
        self, feats: Tensor, *, lens: Tensor | None = None, num_samples: int | None = None
    ) -> Tensor:
        """Signal (B, T') of features (B, N, H); arguments as `toks_to_sig`."""
        self._check_has_feats()
        if feats.ndim != 3 or feats.numel() == 0:
            raise ValueError(
                f"feats must be (B, N, H) with at least one frame, got {tuple(feats.shape)}"
            )
        sigs = [self._feats_to_sig(row) for row in _unpadded(feats, lens, name="feats")]
        return fit(_joined(sigs), num_samples)

    def resynthesize(self, sig: Tensor, *, lens: Tensor | None = None) -> Resynthesis:
        """Encode and decode; arguments and errors as `sig_to_toks`.

        Returns
        -------
        A decoded signal that lasts as long as ``sig`` (each row as long as it is without padding,
        0 after that), and its tokens.
        """
        rows = [self._resynthesize(row) for row in self._sig_rows(sig, lens)]
        decoded = _joined([row.sig for row in rows])
        return Resynthesis(
            fit(decoded, self.num_samples_output(sig.shape[1])), _joined([row.toks for row in rows])
        )

    def _resynthesize(self, sig: Tensor) -> Resynthesis:
        toks = self.sig_to_toks(sig)
        num_samples = self.num_samples_output(sig.shape[1])
        return Resynthesis(self.toks_to_sig(toks, num_samples=num_samples), toks)

    def _sig_rows(self, sig: Tensor, lens: Tensor | None) -> list[Tensor]:
        check_mono(sig, sample_rate=self.sample_rate, dtype=torch.float32)
        return _unpadded(sig, lens, name="sig")

    def _toks_rows(self, toks: Tensor, lens: Tensor | None) -> list[Tensor]:
        if toks.ndim != 3 or toks.shape[-1] != self.num_codebooks or toks.numel() == 0:
            raise ValueError(
                f"toks must be (B, L, {self.num_codebooks}) with L >= 1, got {tuple(toks.shape)}"
            )
        if toks.dtype != torch.int64:
            raise ValueError(f"toks must be int64, got {toks.dtype}; convert with toks.long()")
        rows = _unpadded(toks, lens, name="toks")
        low = min(int(row.min()) for row in rows)
        high = max(int(row.max()) for row in rows)
        if low < 0 or high >= self.codebook_size:
            raise ValueError(f"toks must be in [0, {self.codebook_size}), got {low} to {high}")
        return rows

    def _check_has_feats(self) -> None:
        if not self.has_feats:
            raise ValueError(
                f"{self.name} gives no features in front of its decoder; use its tokens"
            )


def fit(sig: Tensor, num_samples: int | None) -> Tensor:
    """Cut or zero-pad (B, T) to (B, num_samples); None leaves it as it is."""
    if num_samples is None:
        return sig
    return F.pad(sig, (0, max(0, num_samples - sig.shape[1])))[:, :num_samples]


def _joined(rows: list[Tensor]) -> Tensor:
    """(B, longest, ...) of (1, n, ...) rows, 0 past each row's end."""
    return pad_sequence([row[0] for row in rows], batch_first=True)


def _unpadded(x: Tensor, lens: Tensor | None, *, name: str) -> list[Tensor]:
    """Rows (1, n, ...) of a batch without their padding."""
    check_finite(x, lens, name=name)
    if lens is None:
        return list(x.split(1))
    sizes = num_valid(lens, x.shape[1]).tolist()
    return [row[:, :size] for row, size in zip(x.split(1), sizes, strict=True)]
