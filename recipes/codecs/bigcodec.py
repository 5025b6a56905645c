"""BigCodec (Xin et al., 2024, arXiv:2409.05377) through the package ``bigcodec``.

The authors' repository (github.com/Aria-K-Alethia/BigCodec) is no package. The wheel bigcodec 0.0.3
(github.com/intexcor/bigcodec) holds its encoder and decoder under the same names of weights;
interface read there and run with it.
"""

from os import PathLike
from types import ModuleType

from torch import Tensor, nn
from torch.nn import functional as F

from recipes.codecs.codec import Codec
from recipes.codecs.sources import find_files, import_package, load_tensors, model_id

_INSTALL = "pip install bigcodec==0.0.3 einops"


class BigCodec(Codec):
    """One codebook of 8 dimensions between a large convolutional encoder and decoder.

    Features for nearest neighbours are what the decoder takes: the code's projection to 1024
    channels, and for continuous ones the projection of the same 8 values before they are replaced
    by the code's. (The encoder's own output lies in another space.)

    Parameters
    ----------
    checkpoint : hub id, or a folder of the same files.
    weights : name of the file in it, with ``CodecEnc`` and ``generator``.
    name : to print.

    Raises
    ------
    ImportError : if the package is missing.
    FileNotFoundError : if the file is missing.
    ValueError : if it is damaged or of another model.
    """

    has_feats = True
    sample_rate = sample_rate_output = 16_000  # Hz; the weights do not say it

    def __init__(
        self, *, checkpoint: str | PathLike[str], weights: str, name: str = "BigCodec"
    ) -> None:
        super().__init__()
        package = import_package("bigcodec", install=_INSTALL)
        (file,) = find_files(checkpoint, [weights])
        states = load_tensors(file)
        self.encoder, self.decoder = self._parts(package)
        try:
            self.encoder.load_state_dict(states["CodecEnc"])
            self.decoder.load_state_dict(states["generator"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{file} holds no weights of BigCodec: {error}") from error
        self.eval().requires_grad_(False)
        self.name, self.model_id = name, model_id(checkpoint)
        self.token_rate = self.sample_rate / float(self.encoder.hop_length)
        self.num_codebooks, self.codebook_size = 1, self._quantizer.codebook_size

    @staticmethod
    def _parts(package: ModuleType) -> tuple[nn.Module, nn.Module]:
        """Make encoder and decoder of the published size, the package's defaults."""
        return package.CodecEncoder(), package.CodecDecoder()

    @property
    def _quantizer(self) -> nn.Module:
        return self.decoder.quantizer.layers[0]

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        codes = self.decoder(self._encode(sig), vq=True)[1]  # (K, 1, L)
        return codes.movedim(0, -1)

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        return self._feats_to_sig(self._toks_to_qfeats(toks))

    def _sig_to_feats(self, sig: Tensor) -> Tensor:
        lats = self._quantizer.in_proj(self._encode(sig).transpose(1, 2))
        return self._quantizer.out_proj(lats)

    def _toks_to_qfeats(self, toks: Tensor) -> Tensor:
        return self.decoder.vq2emb(toks)

    def _feats_to_sig(self, feats: Tensor) -> Tensor:
        return self.decoder(feats.transpose(1, 2), vq=False)[:, 0]

    def _encode(self, sig: Tensor) -> Tensor:
        # To whole frames, as the authors' inference.py does.
        padded = F.pad(sig, (0, -sig.shape[1] % self.samples_per_tok))
        return self.encoder(padded[:, None])

    def embeddings(self) -> Tensor:
        """(1, codebook_size, 8) code vectors, before the projection."""
        return self._quantizer.get_emb()[None]
