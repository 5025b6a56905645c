"""Training steps as published, from public parts: what our steps are compared with.

They follow SpeechBrain's recipe [1]_: the whole padded batch is encoded; in the decoder stage
SpeechBrain's discriminators judge real and decoded audio apart in both halves of the step; in the
quantizer stage SpeechBrain's quantizer makes its table of frames times codes; AdamW is PyTorch's
default, and one loss is waited for.

The frozen encoder is not the recipe's: here it is transformers' WavLM, cut to six layers, there
upstream's own class ``focalcodec.wavlm.WavLM`` [2]_, which in trials was 1.2 to 1.3 times as fast
(`ENCODER_SPEED`). `benchmarks.train_step` prints what that means for its ratios.

So that losses can agree with ours, the steps are told of padding, which the recipe is not, and its
quantizer, which cannot be told, is spared it.

References
----------
.. [1] speechbrain, ``recipes/LibriTTS/focalcodec``: ``train_decoder.py``, ``train_quantizer.py``.
.. [2] lucadellalib/focalcodec, ``focalcodec/wavlm.py``.
"""

from functools import partial
from typing import Any

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.lobes.models.bsq import BinarySphericalQuantizer
from speechbrain.lobes.models.HifiGAN import (
    HifiganDiscriminator,
    HingeDLoss,
    HingeGLoss,
    L1SpecLoss,
    MelganFeatureLoss,
)
from speechbrain.nnet.losses import mse_loss
from torch import Tensor, nn

from focalcodec.masking import lengths_to_mask, num_valid

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENCODER_SPEED = 1.3  # of the recipe's encoder, transformers' = 1: the most that trials showed
Losses = dict[str, Tensor | float]


class PublishedStep:
    """What both published steps share: encoder, precision, optimizers.

    Parameters
    ----------
    hparams : of the stage's YAML; modules are taken from it, the encoder is not.
    plain : transformers' encoder.
    device : of modules and batches.
    precision : "fp32", or for autocast "bf16" or "fp16".
    """

    def __init__(
        self, hparams: dict[str, Any], plain: nn.Module, *, device: str, precision: str = "fp32"
    ) -> None:
        self.hparams = hparams
        self.device = torch.device(device)
        self.plain = plain.to(self.device)
        self.encoder = hparams["encoder"].to("meta")  # ours: asked for sizes, not held
        dtype = DTYPES[precision]
        enabled = dtype != torch.float32
        self.autocast = partial(torch.autocast, self.device.type, dtype=dtype, enabled=enabled)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    def optimize(self, name: str, module: nn.Module) -> None:
        """Put a module into training on the device, with an optimizer by PyTorch's defaults."""
        names = ("lr", "betas", "weight_decay")
        options = {key: self.hparams[key] for key in names}
        self.optimizers[name] = torch.optim.AdamW(
            module.to(self.device).train().parameters(), **options
        )

    @torch.no_grad()
    def features(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Features (B, N, H) of the padded batch, and mask (B, N) of the frames that we train on.

        As in `focalcodec.codec.encode`, silence makes the last frame of every row a whole one.
        """
        sig, lens = batch.to(self.device).sig
        num_frames = -(-num_valid(lens, sig.shape[1]) // self.encoder.hop_length)
        size = self.encoder.num_samples(-(-sig.shape[1] // self.encoder.hop_length))
        sig = nn.functional.pad(sig, (0, size - sig.shape[1]))
        heard = lengths_to_mask(self.encoder.num_samples(num_frames), size)
        with self.autocast():
            feats = self.plain(sig, attention_mask=heard.long()).last_hidden_state
        return feats, lengths_to_mask(num_frames, feats.shape[1])

    def minimize(self, name: str, loss: Tensor, *, max_norm: float = 0.0) -> None:
        """Do a backward pass and a step, with gradients clipped to ``max_norm`` unless it is 0."""
        optimizer = self.optimizers[name]
        self.scaler.scale(loss).backward()
        if max_norm > 0:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)


class PublishedDecoderStep(PublishedStep):
    """Discriminator step and decoder step; each judges decoded and real audio in two passes.

    Parameters
    ----------
    hparams, plain, device, precision : see `PublishedStep`.
    full_size : take SpeechBrain's discriminators, which have one size; or those of the YAML.
    """

    def __init__(
        self, hparams: dict[str, Any], plain: nn.Module, *, full_size: bool = True, **options: str
    ) -> None:
        super().__init__(hparams, plain, **options)
        self.decoder = hparams["modules"]["decoder"]
        self.discriminator = hparams["modules"]["discriminator"]
        if full_size:
            ours = self.discriminator
            self.discriminator = speechbrain_discriminator(ours)
            ours.to("meta")  # hparams would hold its weights
        self.optimize("discriminator", self.discriminator)
        self.optimize("decoder", self.decoder)
        mel = hparams["mel_loss"].mel
        self.mel_loss = L1SpecLoss(
            sample_rate=mel.sample_rate,
            hop_length=mel.hop_length,
            win_length=mel.win_length,
            n_fft=mel.n_fft,
            n_mel_channels=mel.n_mels,
            mel_fmin=mel.f_min,
            mel_fmax=mel.f_max,
        )

    def __call__(self, batch: PaddedBatch) -> Losses:
        """Train on one batch."""
        feats, ref_sig = self._segments(batch)
        with self.autocast():
            rec_sig = self.decoder(feats)[:, None]
            first = self._discriminator_loss(rec_sig.detach(), ref_sig)
        self.minimize("discriminator", first)
        with self.autocast():
            second = self._decoder_loss(rec_sig, ref_sig)
        self.minimize("decoder", second)
        self.scaler.update()
        return {"discriminator": first.detach(), "decoder": second.item()}

    def _segments(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Features (B, S, H) and signal (B, 1, S * hop_length) at the places of our segments."""
        feats, _ = self.features(batch)
        sig, frames = batch.sig.data, batch.frames.data[:, 0]
        size = feats.shape[1] * self.encoder.hop_length
        sig = nn.functional.pad(sig, (0, size - sig.shape[1])).unflatten(1, (feats.shape[1], -1))
        rows = torch.arange(len(feats), device=feats.device)[:, None]
        return feats[rows, frames], sig[rows, frames].flatten(1)[:, None]

    def _discriminator_loss(self, rec_sig: Tensor, ref_sig: Tensor) -> Tensor:
        rec_scores, _ = self.discriminator(rec_sig)
        ref_scores, _ = self.discriminator(ref_sig)
        return sum(HingeDLoss()(*pair)[0] for pair in zip(rec_scores, ref_scores, strict=True))

    def _decoder_loss(self, rec_sig: Tensor, ref_sig: Tensor) -> Tensor:
        self.discriminator.requires_grad_(False)
        rec_scores, rec_maps = self.discriminator(rec_sig)
        _, ref_maps = self.discriminator(ref_sig)
        self.discriminator.requires_grad_(True)
        weights = self.hparams
        return (
            weights["adversarial_weight"] * sum(HingeGLoss()(score) for score in rec_scores)
            + weights["feature_matching_weight"] * MelganFeatureLoss()(rec_maps, ref_maps)
            + weights["mel_weight"] * self.mel_loss(rec_sig, ref_sig)
        )


class PublishedQuantizerStep(PublishedStep):
    """Whole utterances through compressor, SpeechBrain's quantizer and decompressor."""

    def __init__(self, hparams: dict[str, Any], plain: nn.Module, **options: str) -> None:
        super().__init__(hparams, plain, **options)
        self.modules = nn.ModuleDict(hparams["modules"])
        self.optimize("quantizer", self.modules)
        self.quantizer = BinarySphericalQuantizer(
            hparams["quantizer"].code_dim,
            entropy_loss_weight=hparams["entropy_weight"],
            diversity_gamma=hparams["diversity_weight"],
        ).to(self.device)

    def __call__(self, batch: PaddedBatch) -> Losses:
        """Train on one batch."""
        feats, mask = self.features(batch)
        with self.autocast():
            loss = self._loss(feats, mask)
        self.minimize("quantizer", loss, max_norm=self.hparams["max_grad_norm"])
        self.scaler.update()
        return {"loss": loss.item()}

    def _loss(self, feats: Tensor, mask: Tensor) -> Tensor:
        lats = self.modules["compressor"](feats, mask=mask)
        real_codes, _, entropy = self.quantizer(
            lats[mask][None], inv_temperature=self.hparams["inverse_temperature"]
        )
        codes = torch.zeros_like(lats).masked_scatter(mask[..., None], real_codes.to(lats.dtype))
        qfeats = self.modules["decompressor"](codes, mask=mask)
        error = mse_loss(qfeats, feats, length=mask.float().mean(1), allowed_len_diff=0)
        return self.hparams["reconstruction_weight"] * error + entropy


def settle_spectral_norms(module: nn.Module) -> None:
    """Give spectral norms the singular vectors that they converge to.

    SpeechBrain's older spectral norm does the halves of its power iteration in another order than
    ours. Before both have settled, their outputs differ.
    """
    for part in module.modules():
        if not nn.utils.parametrize.is_parametrized(part, "weight"):
            continue
        norm = part.parametrizations.weight[0]
        if not hasattr(norm, "_u"):  # another parametrization
            continue
        matrix = part.parametrizations.weight.original.detach().flatten(1).double()
        left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -1]
        norm._u.copy_(left)
        norm._v.copy_(nn.functional.normalize(matrix.T @ left, dim=0))


def speechbrain_discriminator(ours: nn.Module) -> HifiganDiscriminator:
    """Make SpeechBrain's discriminators with the weights of ours at width 1."""
    theirs, state = HifiganDiscriminator(), ours.state_dict()
    renamed = {}
    for key in theirs.state_dict():
        name = key.replace(".conv.", ".")
        name = name.replace(".weight_orig", ".parametrizations.weight.original")
        name = name.replace(".weight_u", ".parametrizations.weight.0._u")
        renamed[key] = state.pop(name.replace(".weight_v", ".parametrizations.weight.0._v"))
    assert not state, f"SpeechBrain's discriminators have no {', '.join(state)}"
    theirs.load_state_dict(renamed)
    return theirs
