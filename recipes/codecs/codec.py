"""What a codec is to evaluation and downstream tasks: signals to tokens and back.

An adapter for one codec derives from `Codec` and writes the ``_x_to_y`` methods, which see one
utterance at a time, so that what stands beside an utterance can never change its tokens, whatever
the package behind the adapter does about padding.

========= ============= ======================================================================
name      shape         meaning
========= ============= ======================================================================
``sig``   (B, T)        signal at ``sample_rate``; decoded at ``sample_rate_output``
``toks``  (B, L, K)     int64 tokens of K codebooks, the most important first
``feats`` (B, N, H)     continuous features right before the decoder, not quantized
``qfeats`` (B, N, H)    the same features decoded from tokens
========= ============= ======================================================================
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from focalcodec.checks import check_mono
from focalcodec.masking import num_valid


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
    """

    name: str
    model_id: str
    sample_rate: int
    sample_rate_output: int
    token_rate: float
    num_codebooks: int
    codebook_size: int
    has_feats: bool = False

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
        """(K, codebook_size, H) vector of every token of every codebook."""
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
        ValueError : if ``sig`` is no batch of mono signals or has no samples.
        """
        rows = [self._sig_to_toks(row) for row in self._rows(sig, lens)]
        return pad_sequence([row[0] for row in rows], batch_first=True)

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
        ValueError : if ``toks`` have another shape or are out of range.
        """
        if toks.ndim != 3 or toks.shape[-1] != self.num_codebooks or toks.shape[1] < 1:
            raise ValueError(
                f"toks must be (B, L, {self.num_codebooks}) with L >= 1, got {tuple(toks.shape)}"
            )
        low, high = (int(bound) for bound in toks.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(f"toks must be in [0, {self.codebook_size}), got {low} to {high}")
        return self._joined([self._toks_to_sig(r) for r in _unpadded(toks, lens)], num_samples)

    @torch.no_grad()
    def sig_to_feats(self, sig: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Continuous features (B, N, H) in front of the decoder; arguments as `sig_to_toks`."""
        rows = [self._sig_to_feats(row) for row in self._rows(sig, lens)]
        return pad_sequence([row[0] for row in rows], batch_first=True)

    @torch.no_grad()
    def toks_to_qfeats(self, toks: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Features (B, N, H) of tokens; arguments as `toks_to_sig`."""
        rows = [self._toks_to_qfeats(row) for row in _unpadded(toks, lens)]
        return pad_sequence([row[0] for row in rows], batch_first=True)

    @torch.no_grad()
    def feats_to_sig(
        self, feats: Tensor, *, lens: Tensor | None = None, num_samples: int | None = None
    ) -> Tensor:
        """Signal (B, T') of features (B, N, H); arguments as `toks_to_sig`."""
        return self._joined([self._feats_to_sig(r) for r in _unpadded(feats, lens)], num_samples)

    def _rows(self, sig: Tensor, lens: Tensor | None) -> list[Tensor]:
        check_mono(sig, sample_rate=self.sample_rate, dtype=torch.float32)
        return _unpadded(sig, lens)

    @staticmethod
    def _joined(sigs: list[Tensor], num_samples: int | None) -> Tensor:
        joined = pad_sequence([sig[0] for sig in sigs], batch_first=True)
        if num_samples is None:
            return joined
        missing = max(0, num_samples - joined.shape[1])
        return nn.functional.pad(joined, (0, missing))[:, :num_samples]


def _unpadded(x: Tensor, lens: Tensor | None) -> list[Tensor]:
    """Rows (1, n, ...) of a batch without their padding."""
    if lens is None:
        return list(x.split(1))
    sizes = num_valid(lens, x.shape[1]).tolist()
    return [row[:, :size] for row, size in zip(x.split(1), sizes, strict=True)]
