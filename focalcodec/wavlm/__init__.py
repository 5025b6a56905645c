"""WavLM encoder: raw speech to 50 Hz features, the first stage of the codec (sig -> feats).

The codec keeps the first 6 of WavLM-large's 24 layers: seven strided convolutions, a projection, a
convolutional positional embedding and pre-norm Transformer layers whose attention carries a gated
relative position bias [1]_. No waveform normalisation comes before and no LayerNorm after, as in
the published codec [2]_. The causal form sees no more than the rest of an 80 ms chunk ahead [3]_.

References
----------
.. [1] Chen et al., 2022, "WavLM", arXiv:2110.13900, section III.
.. [2] Della Libera et al., 2025, "FocalCodec", arXiv:2502.04465, appendix D.1.
.. [3] Della Libera et al., 2025, "FocalCodec-Stream", arXiv:2509.16195.
"""

from focalcodec.wavlm.encoder import WavLM
from focalcodec.wavlm.transformers_weights import state_dict_from_transformers

__all__ = ["WavLM", "state_dict_from_transformers"]
