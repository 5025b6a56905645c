"""FocalCodec, any exported folder or published checkpoint, behind the protocol."""

import contextlib
from collections.abc import Iterator, Sequence
from os import PathLike

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from focalcodec import FocalCodec as Model
from focalcodec.checks import check_mono
from focalcodec.masking import num_valid
from focalcodec.quantizers import BinarySphericalQuantizer
from focalcodec.stream import Stream
from recipes.codecs.codec import Codec

# Entries of latents on the unit sphere as close to 0 as this may have another sign in a padded
# batch, where sums are rounded in another order. Measured between batches of 2 to 12 utterances of
# 2 to 16 s and each alone, on a CPU in float32: 9.4e-7 at most at full size (WavLM's six layers and
# the compressor of hparams/bsq.yaml, untrained), 2.8e-7 with small log-mel codecs, trained and
# not. The factor of 30 above that is room for trained WavLM weights and for GPUs, neither of which
# is measured; it costs a second encoding of about one utterance in ten.
TOLERANCE = 3e-5


class FocalCodec(Codec):
    """One codebook; its features are those of the encoder, of the decompressor on the way back.

    Every sample is encoded (``exact_tail``), so that what is decoded covers the whole signal.

    Parameters
    ----------
    checkpoint : folder with config.json and model.safetensors, or hub id.
    name : to print; None for ``FocalCodec@`` and the token rate in Hz.

    Raises
    ------
    FileNotFoundError : if a file is missing, here or on the hub.
    ValueError : if there is no ``checkpoint``, or its files do not fit or are damaged.
    """

    has_feats = True

    def __init__(
        self, *, checkpoint: str | PathLike[str] | None = None, name: str | None = None
    ) -> None:
        super().__init__()
        if checkpoint is None:
            raise ValueError(
                "codec/focalcodec.yaml names no weights; pass checkpoint, the folder of an "
                "exported codec or a hub id such as lucadellalib/focalcodec_50hz"
            )
        self.model = Model.from_pretrained(checkpoint)
        self.model_id = self.model.model_id
        self.sample_rate = self.model.sample_rate
        self.sample_rate_output = self.model.sample_rate_output
        self.token_rate = self.model.token_rate
        self.num_codebooks = 1
        self.codebook_size = self.model.codebook_size
        self.latency_ms = self.model.latency_ms
        self.name = name or f"FocalCodec@{self.token_rate:g}"

    @torch.no_grad()
    def sigs_to_toks(self, sigs: Sequence[Tensor]) -> list[Tensor]:
        """Tokens (L, 1) of signals (T,), from one padded batch where rounding cannot matter.

        An utterance with a latent that lies within `TOLERANCE` of a decision is encoded again
        alone, so the tokens are those of `sig_to_toks` on the same device with as many threads,
        which order sums as well. Only latents on the sphere have a scale that the tolerance fits;
        with other quantizers than BSQ every utterance is encoded alone.
        """
        if len(sigs) < 2 or not isinstance(self.model.quantizer, BinarySphericalQuantizer):
            return super().sigs_to_toks(sigs)
        for sig in sigs:
            check_mono(sig[None], sample_rate=self.sample_rate, dtype=torch.float32)
        sizes = torch.tensor([len(sig) for sig in sigs], dtype=torch.float64)
        batch = pad_sequence(list(sigs), batch_first=True)
        lens = (sizes / batch.shape[1]).to(batch.device)
        with _full_precision():
            lats = self.model.sig_to_lats(batch, lens=lens)
        toks = self.model.quantizer.lats_to_toks(lats)
        counts = self.model.num_toks(num_valid(lens, batch.shape[1])).tolist()
        margins = lats.abs().amin(2)
        return [
            toks[row, :count, None]
            if bool((margins[row, :count] >= TOLERANCE).all())
            else self.sig_to_toks(sigs[row][None])[0]
            for row, count in enumerate(counts)
        ]

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        with _full_precision():
            return self.model.sig_to_toks(sig)[..., None]

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return self.model.toks_to_sig(toks[..., 0])

    def _sig_to_feats(self, sig: Tensor) -> Tensor:
        return self.model.sig_to_feats(sig)

    def _toks_to_qfeats(self, toks: Tensor) -> Tensor:
        return self.model.toks_to_qfeats(toks[..., 0])

    def _feats_to_sig(self, feats: Tensor) -> Tensor:
        return self.model.feats_to_sig(feats)

    def open_stream(self) -> Stream:
        """Live stream of a causal codec."""
        return self.model.open_stream()

    def embeddings(self) -> Tensor:
        """(1, codebook_size, code_dim) binary codes."""
        return self.model.codebook[None]


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep GPUs from rounding inputs to 10 bits (TF32): batches would differ by far more.

    cuDNN does it by itself, matrix products because SpeechBrain asks for it.
    """
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    allowed = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, allowed, strict=True):
            backend.allow_tf32 = value
