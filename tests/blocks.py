"""Parts of the ablation at toy size, as arguments of the fixture ``make_codec``."""

from functools import partial

from focalcodec.fsq import FiniteScalarQuantizer
from focalcodec.hifigan import HiFiGAN
from focalcodec.mixers import AMPBlock, ConformerBlock, LinearBlock
from focalcodec.quantizers import LookupFreeQuantizer

ABLATION = {
    "conformer": {"mixer": partial(ConformerBlock, num_heads=2, kernel_size=5)},
    "amp": {"mixer": partial(AMPBlock, dilations=[1, 2])},
    "linear": {"mixer": partial(LinearBlock, ratio=2.5)},
    "lfq": {"quantizer": LookupFreeQuantizer(6)},
    "fsq": {"quantizer": FiniteScalarQuantizer([8, 5, 5])},
    "hifigan": {"decoder": partial(HiFiGAN, dim=16, resblock_kernel_sizes=[3])},
}
