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
``codes``  (B, L, D)     +-1/sqrt(D)        quantized latents on the sphere
``toks``   (B, L)        [0, 2^D)           int64, bits of the code, most significant first
``qfeats`` (B, N', H)    ``frame_rate`` Hz  decompressor output, N' = L x upscale factors >= N
========== ============= ================== ======================================================

References
----------
Della Libera et al., 2025, FocalCodec: Low-Bitrate Speech Coding via Focal Modulation Networks.
"""

import math
from os import PathLike
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from focalcodec import hub
from focalcodec.masking import lengths_to_mask, num_valid
from focalcodec.quantizers import Quantized

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
        ``codes_to_toks``.
    decompressor : ``input_dim``, ``output_dim``, ``upscale_factors``, ``forward(codes, *, mask)``.
    decoder : ``input_dim``, ``hop_length`` samples, ``forward(feats, *, mask)``; one that works at
        another rate than the encoder says so by an attribute ``sample_rate`` in Hz.

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
        self._check_interfaces()

    @classmethod
    def from_pretrained(
        cls: type[Codec],
        source: str | PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
    ) -> Codec:
        """Codec from a folder, a JSON file or a hub id, frozen and in evaluation mode.

        Parameters
        ----------
        source : folder with config.json and model.safetensors; ``X.json`` with ``X.safetensors``
            beside it; or a hub id.
        revision : branch, tag or commit of a hub id.
        cache_dir : where downloads are kept; None for the hub library's own choice.

        Raises
        ------
        FileNotFoundError : if a file is missing here or on the hub.
        ValueError : if the configuration or the weights do not fit.
        """
        parts = hub.load_parts(source, revision=revision, cache_dir=cache_dir)
        return cls(**parts).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write config.json and model.safetensors, each of which appears whole or not at all."""
        hub.save_parts(dict(self.named_children()), folder)

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
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.quantizer.codebook_size

    @property
    def codebook(self) -> Tensor:
        """(codebook_size, D) code of every token."""
        return self.quantizer.codebook

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
        """Latents (B, L, D) of unit length of a signal, arguments as in `sig_to_feats`."""
        return _on_sphere(self._compress(*self._encode(sig, lens, exact_tail))[0])

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
        """Latents (B, L, D) of unit length of features (B, N, H)."""
        mask = self._mask(feats, lens, "feats", self.encoder.dim)
        return _on_sphere(self._compress(feats, mask)[0])

    def feats_to_toks(self, feats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Tokens (B, L) of features (B, N, H)."""
        mask = self._mask(feats, lens, "feats", self.encoder.dim)
        return self._quantize(feats, mask).toks

    def feats_to_codes(self, feats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Codes (B, L, D) of features (B, N, H); straight-through gradient."""
        mask = self._mask(feats, lens, "feats", self.encoder.dim)
        return self._quantize(feats, mask).codes

    def feats_to_qfeats(self, feats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Decompressed features (B, N', H) of features (B, N, H)."""
        mask = self._mask(feats, lens, "feats", self.encoder.dim)
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
        mask = self._mask(feats, lens, "feats", self.encoder.dim)
        wanted, mask = _wanted(num_samples, mask, feats, self.decoder.hop_length)
        return _cut(self._decode(feats, mask), wanted)

    # From latents, codes and tokens

    def lats_to_toks(self, lats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Tokens (B, L) of latents (B, L, D), on the sphere or not."""
        mask = self._mask(lats, lens, "lats", self.quantizer.code_dim)
        return self.quantizer(lats, mask=mask).toks

    def lats_to_codes(self, lats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Codes (B, L, D) of latents (B, L, D), on the sphere or not; straight-through gradient."""
        mask = self._mask(lats, lens, "lats", self.quantizer.code_dim)
        return self.quantizer(lats, mask=mask).codes

    def lats_to_qfeats(self, lats: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Decompressed features (B, N', H) of latents (B, L, D)."""
        return self._requantize(lats, self._mask(lats, lens, "lats", self.quantizer.code_dim))

    def codes_to_toks(self, codes: Tensor) -> Tensor:
        """Tokens (B, L) of codes (B, L, D)."""
        return self.quantizer.codes_to_toks(codes)

    def codes_to_qfeats(self, codes: Tensor, *, lens: Tensor | None = None) -> Tensor:
        """Decompressed features (B, N', H) of codes (B, L, D)."""
        mask = self._mask(codes, lens, "codes", self.quantizer.code_dim)
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
        mask = self._mask(codes, lens, "codes", self.quantizer.code_dim)
        wanted, mask = _wanted(num_samples, mask, codes, samples_per_tok)
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
        self._check_sig(sig)
        if lens is not None:
            _check_lens(lens, sig)
            # where, not multiplication: 0 x NaN is NaN, and nothing past the end counts.
            real = lengths_to_mask(num_valid(lens, sig.shape[1]), sig.shape[1])
            _check_finite(sig.where(real, 0.0), "sig")
        else:
            _check_finite(sig, "sig")
        return encode(self.encoder, sig, lens=lens, exact_tail=exact_tail)

    def _compress(self, feats: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        lats = self.compressor(feats, mask=mask)
        return lats, None if mask is None else mask[:, :: self._frames_per_tok]

    def _quantize(self, feats: Tensor, mask: Tensor | None) -> Quantized:
        lats, mask = self._compress(feats, mask)
        return self.quantizer(lats, mask=mask)

    def _decompress(self, codes: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        qfeats = self.decompressor(codes, mask=mask)
        return qfeats, None if mask is None else mask.repeat_interleave(self._frames_per_tok, dim=1)

    def _requantize(self, lats: Tensor, mask: Tensor | None) -> Tensor:
        return self._decompress(self.quantizer(lats, mask=mask).codes, mask)[0]

    def _decode(self, feats: Tensor, mask: Tensor | None) -> Tensor:
        return self.decoder(feats, mask=mask)

    # Checks at the boundary

    def _codes(self, toks: Tensor) -> Tensor:
        if toks.ndim != 2 or toks.numel() == 0:
            raise ValueError(
                f"toks must be (B, L) with at least one token, got shape {tuple(toks.shape)}; "
                "add a batch axis with toks[None]"
            )
        return self.quantizer.toks_to_codes(toks).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decompressor.parameters()).dtype

    def _check_sig(self, sig: Tensor) -> None:
        what = f"sig must be (B, T) mono float at {self.sample_rate} Hz"
        if sig.ndim == 1:
            raise ValueError(
                f"{what}, got shape {tuple(sig.shape)}; add a batch axis with sig[None]"
            )
        if sig.ndim != 2:
            raise ValueError(
                f"{what}, got shape {tuple(sig.shape)}; mix the channels down, for example with "
                "sig.mean(dim=1) of (B, channels, T)"
            )
        if sig.numel() == 0:
            raise ValueError(f"{what} with at least one sample, got shape {tuple(sig.shape)}")
        if not sig.is_floating_point():
            raise ValueError(
                f"{what}, got {sig.dtype}; scale integers to [-1, 1], 16-bit ones with "
                "sig.float() / 32768"
            )
        if sig.dtype != self._dtype:
            raise ValueError(
                f"{what} in the codec's own precision {self._dtype}, got {sig.dtype}; "
                f"convert with sig.to({self._dtype})"
            )

    def _mask(self, x: Tensor, lens: Tensor | None, name: str, dim: int) -> Tensor | None:
        """Check a (B, N, dim) sequence and turn its relative lengths into a mask."""
        if x.ndim != 3 or x.shape[-1] != dim or x.numel() == 0:
            raise ValueError(
                f"{name} must be (B, frames, {dim}) with at least one frame, "
                f"got shape {tuple(x.shape)}"
            )
        if lens is None:
            _check_finite(x, name)
            return None
        _check_lens(lens, x)
        mask = lengths_to_mask(num_valid(lens, x.shape[1]), x.shape[1])
        _check_finite(x[mask], name)
        return mask

    def _check_interfaces(self) -> None:
        dim = ("encoder.dim", self.encoder.dim)
        code_dim = ("quantizer.code_dim", self.quantizer.code_dim)
        neighbours = {
            "compressor.input_dim": (self.compressor.input_dim, dim),
            "compressor.output_dim": (self.compressor.output_dim, code_dim),
            "decompressor.input_dim": (self.decompressor.input_dim, code_dim),
            "decompressor.output_dim": (self.decompressor.output_dim, dim),
            "decoder.input_dim": (self.decoder.input_dim, dim),
        }
        for key, (value, (other_key, other)) in neighbours.items():
            if value != other:
                raise ValueError(
                    f"{other_key} is {other} but {key} is {value}; take it from the block: "
                    f"{key.partition('.')[2]}: !ref <{other_key}>"
                )
        down, up = self.compressor.downscale_factors, self.decompressor.upscale_factors
        if math.prod(down) != math.prod(up):
            raise ValueError(
                f"compressor.downscale_factors {list(down)} shorten {math.prod(down)} times but "
                f"decompressor.upscale_factors {list(up)} lengthen {math.prod(up)} times; "
                "the products must agree"
            )
        rate, out_rate = self.sample_rate, self.sample_rate_output
        hop_length, out_hop_length = self.hop_length, self.decoder.hop_length
        if hop_length * out_rate != out_hop_length * rate:
            raise ValueError(
                f"encoder.hop_length is {hop_length} samples at {rate} Hz but decoder.hop_length "
                f"is {out_hop_length} at {out_rate} Hz; a frame must last equally long in both: "
                f"set decoder.hop_length to {hop_length * out_rate / rate:g}"
            )


def encode(
    encoder: nn.Module, sig: Tensor, *, lens: Tensor | None = None, exact_tail: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Features and mask of a signal, by the conventions of `FocalCodec`; training uses it too.

    Parameters
    ----------
    encoder : see `FocalCodec`.
    sig : (B, T) finite signal at the encoder's rate.
    lens : (B,) relative lengths.
    exact_tail : append silence until there are ceil(n / hop_length) frames for n samples.

    Returns
    -------
    feats (B, N, H), 0 past each row's end, and mask (B, N); None for the mask without ``lens``.
    """
    size = sig.shape[1]
    lengths = None
    if lens is not None:
        lengths = num_valid(lens, size)
        sig = sig.where(lengths_to_mask(lengths, size), 0.0)
    if exact_tail:
        size = _padded_size(encoder, size)
        sig = F.pad(sig, (0, size - sig.shape[1]))
    if lengths is None:
        return encoder(sig), None
    if exact_tail:
        lengths = _padded_size(encoder, lengths)
    feats = encoder(sig, lens=lengths.double() / size)
    return feats, lengths_to_mask(encoder.num_frames(lengths), feats.shape[1])


def _padded_size(encoder: nn.Module, num_samples: int | Tensor) -> int | Tensor:
    """Size with the silence that makes it give ceil(num_samples / hop_length) frames."""
    needed = encoder.num_samples(-(-num_samples // encoder.hop_length))
    if isinstance(num_samples, Tensor):
        return needed.maximum(num_samples)
    return max(needed, num_samples)


def _check_lens(lens: Tensor, x: Tensor) -> None:
    if lens.shape != x.shape[:1]:
        raise ValueError(
            f"lens must be ({x.shape[0]},), one for each row, got shape {tuple(lens.shape)}"
        )
    if not lens.is_floating_point() or not bool(((lens > 0) & (lens <= 1)).all()):
        raise ValueError(
            f"lens must be fractions of the padded length in (0, 1], got {lens.tolist()}; "
            "divide absolute lengths by the size of the time axis"
        )


def _check_finite(x: Tensor, name: str) -> None:
    if not bool(x.isfinite().all()):
        count = int((~x.isfinite()).sum())
        raise ValueError(
            f"{name} holds {count} values that are not finite of {x.numel()}; one of them would "
            "change every token: leave the file out or replace them"
        )


def _on_sphere(lats: Tensor) -> Tensor:
    return F.normalize(lats, dim=-1)


def _wanted(
    num_samples: int | Tensor | None, mask: Tensor | None, x: Tensor, samples_per_step: int
) -> tuple[Tensor | None, Tensor | None]:
    """Check how many samples of (B, steps, ...) to decode; one number per row implies a mask."""
    if num_samples is None:
        return None, mask
    wanted = torch.as_tensor(num_samples, device=x.device)
    if wanted.is_floating_point() or wanted.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"num_samples must be an integer or ({x.shape[0]},) integers, "
            f"got {wanted.dtype} of shape {tuple(wanted.shape)}"
        )
    steps = torch.tensor(x.shape[1], device=x.device)
    if wanted.ndim and mask is not None:
        steps = mask.sum(dim=1)
    if not bool(((wanted >= 1) & (wanted <= steps * samples_per_step)).all()):
        raise ValueError(
            f"num_samples is {wanted.tolist()} but must be at least 1 and at most "
            f"{(steps * samples_per_step).tolist()}, which is what there is to decode; tokens of "
            "exact_tail=True cover every sample"
        )
    if wanted.ndim and mask is None:
        mask = lengths_to_mask(-(-wanted // samples_per_step), x.shape[1])
    return wanted, mask


def _cut(sig: Tensor, wanted: Tensor | None) -> Tensor:
    """First ``wanted`` samples of each row, 0 after them."""
    if wanted is None:
        return sig
    sig = sig[:, : int(wanted.max())]
    return sig.where(lengths_to_mask(wanted, sig.shape[1]), 0.0) if wanted.ndim else sig
