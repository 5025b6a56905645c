"""FocalCodec, any exported folder or published checkpoint, behind the protocol."""

from os import PathLike

from torch import Tensor

from focalcodec import FocalCodec as Model
from focalcodec.stream import Stream
from recipes.codecs.codec import Codec


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

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
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
