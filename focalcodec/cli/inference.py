"""The codec on lists of signals and on long ones: padded batches, windows, device and precision."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from focalcodec.codec import FocalCodec
from focalcodec.conversion import knn
from focalcodec.windows import Windows, convert_blocks, decode_blocks, encode_blocks

_USUAL = Windows()


class Inference:
    """Tokens of signals and signals of tokens, on the codec's device, given back on the CPU.

    Lists go through the codec as one padded batch, streams through windows, and what fits into one
    window gives the same either way.

    Parameters
    ----------
    codec : trained codec.
    windows : how long signals are cut.
    streams_all : let short signals go through windows too, for sizes that are no whole signals.
    dtype : precision of autocast; float32 switches it off.
    topk : neighbours for voice conversion.

    Attributes
    ----------
    tok_format : what a token file says of the codec, see `focalcodec.bitstream.Header`.
    matching_set : (M, H) frames of a voice to decode in, see `focalcodec.conversion.knn`; None to
        decode as it is.
    """

    def __init__(
        self,
        codec: FocalCodec,
        *,
        windows: Windows = _USUAL,
        streams_all: bool = False,
        dtype: torch.dtype = torch.float32,
        topk: int = 4,
    ) -> None:
        self.codec = codec
        self.windows = windows
        self.streams_all = streams_all
        self.dtype = dtype
        self.topk = topk
        self.matching_set: Tensor | None = None
        self.tok_format = {
            "bits": max(1, (codec.codebook_size - 1).bit_length()),
            "codec_rate": codec.sample_rate,
            "samples_per_tok": codec.samples_per_tok,
            "fingerprint": codec.fingerprint,
            "model_id": codec.model_id,
        }
        self._device = next(codec.parameters()).device

    @property
    def max_samples(self) -> int:
        """Size from which on a signal goes through windows: it has `max_toks` tokens."""
        return max(0, self.codec.samples_per_tok * (self.max_toks - 1) + 1)

    @property
    def max_toks(self) -> int:
        """Number of tokens from which on they go through windows."""
        if self.streams_all:
            return 0
        per_tok = self.codec.samples_per_tok
        return self.windows.size // per_tok + self.windows.right // per_tok

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """Switch gradients off and the wanted precision on, for all that follows here."""
        wants = self.dtype != torch.float32
        # PyTorch lets convolutions on GPUs round float32 to 10 bits, which would flip tokens.
        exact = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
        with (
            exact,
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=self.dtype if wants else None, enabled=wants),
        ):
            yield

    def encode(self, sigs: Sequence[Tensor]) -> list[Tensor]:
        """Tokens, (L,) each, of signals (T,) at the codec's rate."""
        sizes = torch.tensor([sig.shape[0] for sig in sigs])
        batch = pad_sequence(list(sigs), batch_first=True).to(self._device)
        lens = (sizes.double() / batch.shape[1]).to(self._device)
        toks = self.codec.sig_to_toks(batch, lens=lens).cpu()
        counts = self.codec.num_toks(sizes).tolist()
        return [row[:count] for row, count in zip(toks, counts, strict=True)]

    def decode(self, toks: Sequence[Tensor], *, num_samples: Sequence[int]) -> list[Tensor]:
        """Signals of as many output samples as wanted, one for each row of tokens (L,)."""
        sizes = torch.tensor([row.shape[0] for row in toks])
        batch = pad_sequence(list(toks), batch_first=True).to(self._device)
        lens = (sizes.double() / batch.shape[1]).to(self._device)
        wanted = torch.tensor(num_samples, device=self._device)
        if self.matching_set is None:
            sig = self.codec.toks_to_sig(batch, lens=lens, num_samples=wanted)
        else:
            feats = self.codec.toks_to_qfeats(batch, lens=lens)
            feats = knn(feats, self.matching_set, topk=self.topk)
            sig = self.codec.feats_to_sig(feats, lens=lens, num_samples=wanted)
        sig = sig.float().cpu()
        return [row[:count] for row, count in zip(sig, num_samples, strict=True)]

    def encode_stream(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Tokens of a signal in (T,) blocks, window by window."""
        moved = (block.to(self._device) for block in blocks)
        for toks in encode_blocks(self.codec, moved, windows=self.windows):
            yield toks.cpu()

    def decode_stream(self, toks: Iterable[Tensor], *, num_samples: int) -> Iterator[Tensor]:
        """Signal of tokens in (L,) blocks, window by window, ``num_samples`` in all."""
        moved = (block.to(self._device) for block in toks)
        if self.matching_set is None:
            pieces = decode_blocks(self.codec, moved, windows=self.windows, num_samples=num_samples)
        else:
            pieces = convert_blocks(
                self.codec,
                moved,
                matching_set=self.matching_set,
                topk=self.topk,
                windows=self.windows,
                num_samples=num_samples,
            )
        for piece in pieces:
            yield piece.float().cpu()

    def features(self, blocks: Iterable[Tensor]) -> Tensor:
        """Features (M, H) of a signal in (T,) blocks, in pieces of a window or, for chunks, 30 s.

        The pieces have no context: in a matching set the order of frames does not count, and of
        1500 frames only those at the ends differ.
        """
        size = (_USUAL if self.streams_all else self.windows).size
        feats, held = [], torch.empty(0)
        for block in blocks:
            held = torch.cat([held, block])
            while held.shape[0] >= size:
                feats.append(self._features(held[:size]))
                held = held[size:]
        if held.shape[0]:
            feats.append(self._features(held))
        return torch.cat(feats)

    def _features(self, sig: Tensor) -> Tensor:
        return self.codec.sig_to_feats(sig[None].to(self._device))[0].float()
