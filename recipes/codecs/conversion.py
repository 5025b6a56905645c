"""One-shot voice conversion with any codec (Della Libera et al., 2025, section 4.4).

A single codebook: k nearest neighbours in the features in front of the decoder (Baas et al., 2023,
arXiv:2305.18975). Several codebooks: the first, which shall hold the content, from the source, the
others from the reference (Zhang et al., 2024, arXiv:2308.16692).

Other than in the author's release (lucadellalib/audiocodecs, downstream/test_vc.py), features are
those that the decoder sees, where the release matches BigCodec with its encoder's raw output; and
what is converted keeps the source's length, where the release cuts it, or repeats its last sample,
to the target's before it is scored. A short reference is repeated from its start, where the release
pads it circularly on both sides; the paper says "truncated or circularly padded as needed".
"""

import torch
from torch import Tensor

from focalcodec.conversion import knn
from recipes.codecs.codec import Codec


def convert(codec: Codec, sig: Tensor, reference_sig: Tensor, *, topk: int = 4) -> Tensor:
    """Say what the source says in the voice of the reference.

    Parameters
    ----------
    codec : with several codebooks, or one and features.
    sig : (1, T) source at the codec's rate.
    reference_sig : (1, T') speech of the target speaker, of any length.
    topk : neighbours that are averaged; for one codebook only.

    Returns
    -------
    (1, T'') at the codec's output rate, as long as the source.

    Raises
    ------
    ValueError : if the codec has one codebook and no features, or a signal is no single mono one.
    """
    for which, one in (("sig", sig), ("reference_sig", reference_sig)):
        if one.ndim != 2 or one.shape[0] != 1:
            raise ValueError(f"{which} must be one utterance (1, T), got {tuple(one.shape)}")
    if codec.num_codebooks == 1 and not codec.has_feats:
        raise ValueError(
            f"{codec.name} has one codebook and gives no features in front of its decoder; voice "
            "conversion needs several codebooks or features"
        )
    num_samples = codec.num_samples_output(sig.shape[1])
    toks = codec.sig_to_toks(sig)
    if codec.num_codebooks > 1:
        mixed = mix_toks(toks, codec.sig_to_toks(reference_sig))
        return codec.toks_to_sig(mixed, num_samples=num_samples)
    matching_set = codec.sig_to_feats(reference_sig)[0]
    feats = knn(codec.toks_to_qfeats(toks), matching_set, topk=topk)
    return codec.feats_to_sig(feats, num_samples=num_samples)


def mix_toks(toks: Tensor, reference_toks: Tensor) -> Tensor:
    """First codebook of the source, the others of the reference.

    Parameters
    ----------
    toks : (1, L, K) of the source.
    reference_toks : (1, M, K); truncated to L, or repeated from its start.

    Returns
    -------
    (1, L, K).
    """
    index = torch.arange(toks.shape[1], device=toks.device) % reference_toks.shape[1]
    return torch.cat([toks[..., :1], reference_toks[:, index, 1:]], dim=-1)
