"""Distances of signals and of features, and what makes their means those of all ranks.

The log-mel distance is the reconstruction loss of the decoder stage (paper, appendix D.1), the
masked squared error that of all stages that learn features.
"""

import torch
import torchaudio
from speechbrain.lobes.models.HifiGAN import dynamic_range_compression
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from focalcodec.masking import masked_mean


class LogMelLoss(nn.Module):
    """Mean absolute difference of log-mel spectrograms, that of SpeechBrain's ``L1SpecLoss``.

    ``L1SpecLoss`` builds window and filters anew at every call; these are built once. Computed in
    float32, also under autocast.

    Parameters
    ----------
    sample_rate : Hz.
    hop_length, win_length, n_fft : samples.
    n_mels : bands.
    f_min, f_max : borders of the lowest and highest band, Hz.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        hop_length: int,
        win_length: int,
        n_fft: int,
        n_mels: int,
        f_min: float,
        f_max: float,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=sample_rate,
            hop_length=hop_length,
            win_length=win_length,
            n_fft=n_fft,
            n_mels=n_mels,
            f_min=f_min,
            f_max=f_max,
            power=1.0,
            norm="slaney",
            mel_scale="slaney",
        )

    def forward(self, rec_sig: Tensor, ref_sig: Tensor) -> Tensor:
        """Distance of signals (..., T) of one length; scalar."""
        return l1_loss(self.log_mel(rec_sig), self.log_mel(ref_sig))

    def log_mel(self, sig: Tensor) -> Tensor:
        """(..., T) samples to (..., n_mels, frames), natural logarithm."""
        with torch.autocast(sig.device.type, enabled=False):
            return dynamic_range_compression(self.mel(sig.float()))


def masked_mse(hyp: Tensor, ref: Tensor, *, mask: Tensor) -> Tensor:
    """Squared error of (B, N, H) values, mean over real frames and channels; scalar, float32.

    ``mask`` (B, N) is True for real frames; what lies in the others does not count.
    """
    return masked_mean((hyp.float() - ref.float()).square().mean(dim=-1), mask=mask)


def rank_share(count: Tensor) -> Tensor:
    """Weight of this rank's mean over ``count`` things in a mean over those of all ranks.

    DistributedDataParallel takes the plain mean of the ranks' gradients; weighted by this, it is
    the gradient of the mean over all things.
    """
    count = count.float()
    if not torch.distributed.is_initialized():
        return torch.ones_like(count)
    total = count.clone()
    torch.distributed.all_reduce(total)
    return count * torch.distributed.get_world_size() / total
