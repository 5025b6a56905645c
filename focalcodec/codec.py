"""The codec: five injected parts and the conversions between signal and tokens.

``sig`` -> encoder -> ``feats`` -> compressor -> ``lats`` -> quantizer -> ``codes``, ``toks`` ->
decompressor -> ``qfeats`` -> decoder -> ``sig``. A method ``x_to_y`` goes from x to y on this way.

Glossary, valid in the whole project:

========== ============= ================== ======================================================
name       shape         unit / range       meaning
========== ============= ================== ======================================================
``sig``    (B, T)        [-1, 1], Hz of     waveform, float32; ``ref_``, ``hyp_``, ``rec_``
                         ``sample_rate``    (decoded) as prefixes
``lens``   (B,)          (0, 1]             real fraction of each row along the tensor's own time
``mask``   (B, N) (B, L) bool               True = real frame, from ``lens`` by ``masking.py``
``feats``  (B, N, H)     ``frame_rate`` Hz  encoder features
``lats``   (B, L, D)     ``token_rate`` Hz  compressor output, before quantization
``codes``  (B, L, D)     +-1/sqrt(D)        quantized latents; BSQ's lie on the sphere
``toks``   (B, L)        [0, codebook_size) int64, entries of the code, most significant first
``qfeats`` (B, N', H)    ``frame_rate`` Hz  decompressor output, N' = L x upscale factors >= N
========== ============= ================== ======================================================

References
----------
Della Libera et al., 2025, FocalCodec: Low-Bitrate Speech Coding via Focal Modulation Networks.
"""

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from focalcodec import hub
from focalcodec.checks import (
    check_finite,
    check_interfaces,
    check_mono,
    check_num_samples,
    check_sequence,
    check_toks,
)
from focalcodec.conversion import knn
from focalcodec.encoding import encode
from focalcodec.masking import lengths_to_mask, num_valid
from focalcodec.quantizers import Quantized
from focalcodec.stream import Stream, is_causal

Codec = TypeVar("Codec", bound=nn.Module)


class Resynthesis(NamedTuple):
    """What `FocalCodec.forward` gives: tokens (B, L), codes (B, L, D), decoded signal (B, T)."""

    toks: Tensor
    codes: Tensor
    rec_sig: Tensor


class FocalCodec(nn.Module):
    """Encoder, compressor, quantizer, decompressor and decoder behind one interface.

    Three conventions hold for every conversion ``x_to_y``:

    - ``lens`` are relative to the time axis of the tensor that is passed, None means that nothing
      is padded. With ``lens`` a row gives what it gives alone, whatever stands beside it; what lies
      past its end is ignored and comes back as 0.
    - ``exact_tail=True``, the default, appends silence to a signal of n samples until the encoder
      gives ceil(n / hop_length) frames, so that decoding covers every sample and the last ones are
      audio. ``exact_tail=False`` is the arithmetic of the published codec, which drops up to 399
      samples; it is for comparisons with published tokens.
    - ``num_samples`` (output samples, an int or one per row) cuts what is decoded, which is a whole
      number of tokens. One number per row also says where each row's tokens end, so ``lens`` can be
      left out.

    Gradients flow through every conversion but those that pass through ``toks``; nothing here
    switches them off.

    Parameters
    ----------
    encoder : ``sample_rate`` Hz, ``hop_length`` samples, ``dim``, ``num_frames``, ``num_samples``,
        ``forward(sig, *, lens)``.
    compressor : ``input_dim``, ``output_dim``, ``downscale_factors``, ``forward(feats, *, mask)``.
    quantizer : ``code_dim``, ``codebook_size``, ``forward(lats, *, mask)``, ``toks_to_codes``,
        ``codes_to_toks``, ``normalize``.
    decompressor : ``input_dim``, ``output_dim``, ``upscale_factors``, ``forward(codes, *, mask)``.
    decoder : ``input_dim``, ``hop_length`` samples, ``forward(feats, *, mask)``; one that works at
        another rate than the encoder says so by an attribute ``sample_rate`` in Hz.

    Attributes
    ----------
    model_id : hub id or name of the folder that the codec comes from, "" for one made in memory.

    Raises
    ------
    ValueError : if sizes, factors or frame lengths of neighbouring parts differ; the message names
        both.
    """

    def __init__(
        self,
        encoder: nn.Module,
        compressor: nn.Module,
        quantizer: nn.Module,
        decompressor: nn.Module,
        decoder: nn.Module,
    ):
        super().__init__()
        self.encoder = encoder
        self.compressor = compressor
        self.quantizer = quantizer
        self.decompressor = decompressor
        self.decoder = decoder
        self.model_id = ""
        check_interfaces(self)

    @classmethod
    def from_pretrained(
        cls: type[Codec],
        source: str | PathLike[str],
        *,
        overrides: Mapping[str, Any] | None = None,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
    ) -> Codec:
        """Codec with trained weights, frozen and in evaluation mode.

        Files that are here, in a folder or in the hub's cache, are used without asking the network.

        Parameters
        ----------
        source : folder with config.json and model.safetensors; ``X.json`` or ``X`` with
            ``X.safetensors`` beside it; hub id ``owner/name``; or ``owner/name/X.json`` on the hub.
        overrides : dotted key -> value, changes of the configuration before it is built, such as
            ``{"encoder_config.dropout": 0.1}``.
        revision : branch, tag or commit of a hub id.
        cache_dir : where downloads are kept; None for the hub library's own choice.

        Raises
        ------
        FileNotFoundError : if a file is missing here or on the hub.
        ValueError : if the configuration or the weights do not fit, or a file is damaged.
        """
        parts = hub.load_parts(source, overrides=overrides, revision=revision, cache_dir=cache_dir)
        try:
            codec = cls(**parts)
        except ValueError as error:
            raise ValueError(f"{source} has parts that do not fit together: {error}") from error
        codec.model_id = _model_id(source)
        return codec.eval().requires_grad_(False)

    @classmethod
    def from_config(
        cls: type[Codec],
        source: str | PathLike[str],
        *,
        overrides: Mapping[str, Any] | None = None,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
    ) -> Codec:
        """Codec of the same configuration with new random weights, trainable.

        Parameters and errors are those of `from_pretrained`; no weights are read.
        """
        return cls(
            **hub.load_parts(
                source,
                pretrained=False,
                overrides=overrides,
                revision=revision,
                cache_dir=cache_dir,
            )
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write config.json and model.safetensors, each of which appears whole or not at all."""
        hub.save_parts(dict(self.named_children()), folder)

    def open_stream(self, *, batch_size: int = 1) -> Stream:
        """Live streams through a causal codec, see `focalcodec.stream.Stream`.

        Raises
        ------
        ValueError : if a part is not causal.
        """
        return Stream(self, batch_size=batch_size)

    # Properties

    @property
    def sample_rate(self) -> int:
        """Rate of the input, Hz."""
        return self.encoder.sample_rate

    @property
    def sample_rate_input(self) -> int:
        """Rate of the input, Hz; the published name of `sample_rate`."""
        return self.sample_rate

    @property
    def sample_rate_output(self) -> int:
        """Rate of the decoded signal, Hz."""
        return getattr(self.decoder, "sample_rate", self.sample_rate)

    @property
    def hop_length(self) -> int:
        """Input samples per frame of features."""
        return self.encoder.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames of features per second, Hz."""
        return self.sample_rate / self.hop_length

    @property
    def token_rate(self) -> float:
        """Tokens per second, Hz."""
        return self.frame_rate / self._frames_per_tok

    @property
    def samples_per_tok(self) -> int:
        """Input samples of one token."""
        return self.hop_length * self._frames_per_tok

    @property
    def causal(self) -> bool:
        """Whether every part sees nothing that comes later than the rest of its chunk."""
        return all(is_causal(part, name=name) for name, part in self.named_children())

    @property
    def chunk_size(self) -> int:
        """Input samples that a causal codec waits for: whole frames and tokens of all parts."""
        parts = (self.encoder, self.decompressor)
        frames = [getattr(part, "chunk_frames", 1) for part in parts]
        return self.hop_length * math.lcm(self._frames_per_tok, *frames)

    @property
    def latency_ms(self) -> float | None:
        """Time from a sample to its tokens at worst, without computation; None if not causal."""
        return 1000 * self.chunk_size / self.sample_rate if self.causal else None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of signals and features."""
        return next(self.decompressor.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """32 hex digits that codecs with the same tokens share; see `hub.fingerprint`."""
        return hub.fingerprint(dict(self.named_children()))

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.quantizer.codebook_size

    @property
    def codebook(self) -> Tensor:
        """(codebook_size, D) float32 code of every token, on the device of the codec."""
        return self.quantizer.codebook.to(next(self.decompressor.parameters()).device)

    @property
    def bitrate(self) -> float:
        """Bits per second of speech."""
        return self.token_rate * math.log2(self.codebook_size)

    def num_frames(self, num_samples: int | Tensor, *, exact_tail: bool = True) -> int | Tensor:
        """Frames of features of ``num_samples`` input samples; an int or (B,) int64, as given."""
        if exact_tail:
            return -(-num_samples // self.hop_length)
        return self.encoder.num_frames(num_samples)

    def num_toks(self, num_samples: int | Tensor, *, exact_tail: bool = True) -> int | Tensor:
        """Tokens of ``num_samples`` input samples; an int or (B,) int64, as given."""
        return -(-self.num_frames(num_samples, exact_tail=exact_tail) // self._frames_per_tok)

    def compile_parts(self) -> None:
        """Compile encoder, compressor, decompressor and decoder, in place and at their first call.

        Lengths stay dynamic. The first batches take minutes at full size; long jobs gain.
        """
        for part in (self.encoder, self.compressor, self.decompressor, self.decoder):
            part.compile(dynamic=True)

    # From a signal

    def forward(
        self, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
    ) -> Resynthesis:
        """Encode and decode.

        Parameters
        ----------
        sig : (B, T) signal at `sample_rate`.
        lens : (B,) relative lengths.
        exact_tail : see the class. With False the decoded signal falls short of the input; it is
            completed by repeating its last sample, as in the published codec.

        Returns
        -------
        Tokens, codes and a decoded signal that lasts as long as ``sig``: (B, T) where the rates of
        input and output agree, (B, floor(T x output rate / input rate)) elsewhere. Samples past a
        row's end are 0.
        """
        feats, mask = self._encode(sig, lens, exact_tail)
        lats, mask = self._compress(feats, mask)
        toks, codes = self.quantizer(lats, mask=mask)
        rec_sig = self._decode(*self._decompress(codes, mask))
        size = self._output_samples(sig.shape[1])
        if lens is None:
            missing = max(0, size - rec_sig.shape[1])
            return Resynthesis(toks, codes, F.pad(rec_sig, (0, missing), "replicate")[:, :size])
        covered = mask.sum(1) * self._frames_per_tok * self.decoder.hop_length
        index = torch.arange(size, device=sig.device).minimum(covered[:, None] - 1)
        real = lengths_to_mask(self._output_samples(num_valid(lens, sig.shape[1])), size)
        return Resynthesis(toks, codes, rec_sig.gather(1, index).where(real, 0.0))

    def sig_to_feats(
        self, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
    ) -> Tensor:
        """Features (B, N, H) of a signal.

        Parameters
        ----------
        sig : (B, T) mono signal at `sample_rate`, T >= 1; its level is kept as it is.
        lens : (B,) relative lengths.
        exact_tail : see the class.

        Returns
        -------
        (B, N, H) with N = ``num_frames(T)``; row b has ``num_frames`` of its own samples, what
        follows is 0.

        Raises
        ------
        ValueError : if ``sig`` is no batch of mono signals, empty, not finite or not of the codec's
            precision, or ``lens`` are not in (0, 1].
        """
        return self._encode(sig, lens, exact_tail)[0]

    def sig_to_lats(
        self, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
    ) -> Tensor:
        """Latents (B, L, D) of a signal, arguments as in `sig_to_feats`; BSQ's have unit length."""
        return self.quantizer.normalize(self._compress(*self._encode(sig, lens, exact_tail))[0])

    def sig_to_toks(
        self, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
    ) -> Tensor:
        """Tokens (B, L) of a signal, arguments as in `sig_to_feats`; row b has its `num_toks`."""
        return self._quantize(*self._encode(sig, lens, exact_tail)).toks

    def sig_to_codes(
        self, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
    ) -> Tensor:
        """Codes (B, L, D) of a signal, as `sig_to_feats`; straight-through gradient."""
        return self._quantize(*self._encode(sig, lens, exact_tail)).codes

    def sig_to_qfeats(
        self, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
    ) -> Tensor:
        """Decompressed features (B, N', H) of a signal; arguments as in `sig_to_feats`."""
        return self._requantize(*self._compress(*self._encode(sig, lens, exact_tail)))

    # From features

    def feats_to_lats(self, feats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Latents (B, L, D) of features (B, N, H); BSQ's have unit length."""
        mask = self._mask(feats, lens, "feats")
        return self.quantizer.normalize(self._compress(feats, mask)[0])

    def feats_to_toks(self, feats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Tokens (B, L) of features (B, N, H)."""
        mask = self._mask(feats, lens, "feats")
        return self._quantize(feats, mask).toks

    def feats_to_codes(self, feats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Codes (B, L, D) of features (B, N, H); straight-through gradient."""
        mask = self._mask(feats, lens, "feats")
        return self._quantize(feats, mask).codes

    def feats_to_qfeats(self, feats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Decompressed features (B, N', H) of features (B, N, H)."""
        mask = self._mask(feats, lens, "feats")
        return self._requantize(*self._compress(feats, mask))

    def feats_to_sig(
        self,
        feats: Tensor,
        *,
        lens: Tensor | None = None,
        num_samples: int | Tensor | None = None,
    ) -> Tensor:
        """Decode features, quantized or not.

        Parameters
        ----------
        feats : (B, N, H) features or decompressed features.
        lens : (B,) relative lengths.
        num_samples : samples to keep, an int or (B,) integers; None for all N x
            ``decoder.hop_length``.

        Returns
        -------
        (B, max(num_samples)) signal at `sample_rate_output`, 0 past each row's end.

        Raises
        ------
        ValueError : if more samples are asked for than the features cover.
        """
        mask = self._mask(feats, lens, "feats")
        wanted, mask = check_num_samples(
            num_samples, mask, like=feats, samples_per_step=self.decoder.hop_length
        )
        return _cut(self._decode(feats, mask), wanted)

    knn = staticmethod(knn)  # voice conversion, feats to feats; the published name

    # From latents, codes and tokens

    def lats_to_toks(self, lats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Tokens (B, L) of latents (B, L, D), on the sphere or not."""
        mask = self._mask(lats, lens, "lats")
        return self.quantizer(lats, mask=mask).toks

    def lats_to_codes(self, lats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Codes (B, L, D) of latents (B, L, D), on the sphere or not; straight-through gradient."""
        mask = self._mask(lats, lens, "lats")
        return self.quantizer(lats, mask=mask).codes

    def lats_to_qfeats(self, lats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Decompressed features (B, N', H) of latents (B, L, D)."""
        return self._requantize(lats, self._mask(lats, lens, "lats"))

    def codes_to_toks(self, codes: Tensor) -> Tensor:
        """Tokens (B, L) of codes (B, L, D)."""
        return self.quantizer.codes_to_toks(codes)

    def codes_to_qfeats(self, codes: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Decompressed features (B, N', H) of codes (B, L, D)."""
        mask = self._mask(codes, lens, "codes")
        return self._decompress(codes, mask)[0]

    def codes_to_sig(
        self,
        codes: Tensor,
        *,
        lens: Tensor | None = None,
        num_samples: int | Tensor | None = None,
    ) -> Tensor:
        """Signal (B, T) of codes (B, L, D), arguments as in `toks_to_sig`."""
        samples_per_tok = self._frames_per_tok * self.decoder.hop_length
        mask = self._mask(codes, lens, "codes")
        wanted, mask = check_num_samples(
            num_samples, mask, like=codes, samples_per_step=samples_per_tok
        )
        return _cut(self._decode(*self._decompress(codes, mask)), wanted)

    def toks_to_codes(self, toks: Tensor) -> Tensor:
        """Codes (B, L, D) of tokens (B, L).

        Raises
        ------
        ValueError : if a token is no integer or outside [0, codebook_size).
        """
        return self.quantizer.toks_to_codes(toks)

    def toks_to_qfeats(self, toks: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Decompressed features (B, N', H) of tokens (B, L)."""
        return self.codes_to_qfeats(self._codes(toks), lens=lens)

    def toks_to_sig(
        self,
        toks: Tensor,
        *,
        lens: Tensor | None = None,
        num_samples: int | Tensor | None = None,
    ) -> Tensor:
        """Decode tokens.

        Parameters
        ----------
        toks : (B, L) int64 tokens, L >= 1.
        lens : (B,) relative lengths.
        num_samples : samples to keep, an int or (B,) integers; None for all of the L tokens.

        Returns
        -------
        (B, max(num_samples)) signal at `sample_rate_output`, 0 past each row's end.

        Raises
        ------
        ValueError : if a token is out of range or more samples are asked for than the tokens cover.
        """
        return self.codes_to_sig(self._codes(toks), lens=lens, num_samples=num_samples)

    # The four stages on masks; every conversion above is made of these.

    @property
    def _frames_per_tok(self) -> int:
        return math.prod(self.compressor.downscale_factors)

    def _output_samples(self, num_samples: int | Tensor) -> int | Tensor:
        """Output samples that last as long as ``num_samples`` input samples, rounded down."""
        return num_samples * self.decoder.hop_length // self.hop_length

    def _encode(
        self, sig: Tensor, lens: Tensor | None, exact_tail: bool
    ) -> tuple[Tensor, Tensor | None]:
        check_mono(sig, sample_rate=self.sample_rate, dtype=self.dtype)
        check_finite(sig, lens, name="sig")
        feats, mask = encode(self.encoder, sig, lens=lens, exact_tail=exact_tail)
        if not bool(feats.isfinite().all()):
            raise ValueError(
                "the encoder overflows: its features are not finite, and every token would be 0; "
                f"sig peaks at {float(sig.nan_to_num().abs().max()):g}, scale it to [-1, 1] or "
                f"compute in more than {feats.dtype}"
            )
        return feats, mask

    def _compress(self, feats: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        lats = self.compressor(feats, mask=mask)
        return lats, None if mask is None else mask[:, :: self._frames_per_tok]

    def _quantize(self, feats: Tensor, mask: Tensor | None) -> Quantized:
        lats, mask = self._compress(feats, mask)
        return self.quantizer(lats, mask=mask)

    def _decompress(self, codes: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # Quantizers give float32, whatever the precision of the parts.
        qfeats = self.decompressor(codes.to(self.dtype), mask=mask)
        return qfeats, None if mask is None else mask.repeat_interleave(self._frames_per_tok, dim=1)

    def _requantize(self, lats: Tensor, mask: Tensor | None) -> Tensor:
        return self._decompress(self.quantizer(lats, mask=mask).codes, mask)[0]

    def _decode(self, feats: Tensor, mask: Tensor | None) -> Tensor:
        return self.decoder(feats, mask=mask)

    def _mask(self, x: Tensor, lens: Tensor | None, name: str) -> Tensor | None:
        """Check a sequence that the user passes in; its mask."""
        dim = self.encoder.dim if name == "feats" else self.quantizer.code_dim
        return check_sequence(x, lens, name=name, dim=dim)

    def _codes(self, toks: Tensor) -> Tensor:
        check_toks(toks)
        return self.quantizer.toks_to_codes(toks)


def _model_id(source: str | PathLike[str]) -> str:
    """Name of a checkpoint without the place where it lies on this machine."""
    path = Path(source).expanduser()
    for file in (path, Path(f"{path}.json")):
        if file.is_file():
            return file.resolve().parent.name if file.name == "config.json" else file.stem
    return path.resolve().name if path.is_dir() else str(source)


def _cut(sig: Tensor, wanted: Tensor | None) -> Tensor:
    """First ``wanted`` samples of each row, 0 after them."""
    if wanted is None:
        return sig
    sig = sig[:, : int(wanted.max())]
    return sig.where(lengths_to_mask(wanted, sig.shape[1]), 0.0) if wanted.ndim else sig
