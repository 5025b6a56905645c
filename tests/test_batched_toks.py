"""Encoding several utterances at once gives the tokens of each alone (recipes/codecs)."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from focalcodec.fsq import FiniteScalarQuantizer
from recipes.codecs.focalcodec import TOLERANCE, FocalCodec
from tests.tiny_codecs import Pcm, noise

SIZES = (5000, 16_001, 9_999, 320, 1)


class Shifted(nn.Module):
    """A compressor whose latents are moved."""

    def __init__(self, compressor, shift):
        super().__init__()
        self.compressor, self.downscale_factors = compressor, compressor.downscale_factors
        self.register_buffer("shift", shift)

    def forward(self, feats, *, mask=None):
        return self.compressor(feats, mask=mask) - self.shift


@pytest.fixture
def load(make_codec, tmp_path):
    """Maker of codecs behind the protocol."""

    def load(**options):
        make_codec(**options).save_pretrained(tmp_path)
        return FocalCodec(checkpoint=tmp_path)

    return load


def sigs(*sizes):
    return [noise(1, size, seed=size)[0] for size in sizes]


def alone(codec, signals):
    return [codec.sig_to_toks(sig[None])[0] for sig in signals]


def assert_equal(found, wanted):
    assert [toks.shape for toks in found] == [toks.shape for toks in wanted]
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoder": "wavlm"},
        {"encoder": "wavlm", "factors": (2, 2, 1), "code_dim": 13},
        {"quantizer": FiniteScalarQuantizer([8, 5, 5])},
    ],
    ids=["logmel", "wavlm", "12.5 Hz", "fsq"],
)
def test_a_batch_gives_the_tokens_of_each_alone(load, options):
    codec, signals = load(**options), sigs(*SIZES)
    assert_equal(codec.sigs_to_toks(signals), alone(codec, signals))


def test_a_codec_without_a_batch_of_its_own_encodes_one_after_the_other():
    codec, signals = Pcm(block=3), sigs(*SIZES)
    assert_equal(codec.sigs_to_toks(signals), alone(codec, signals))
    assert codec.longest == max(SIZES)


def test_a_latent_that_rounding_would_flip_keeps_its_token(load):
    codec, signals = load(encoder="wavlm"), sigs(4000, 16_000, 6000)
    size = torch.tensor([len(sig) for sig in signals])
    batch, lens = pad_sequence(signals, batch_first=True), size / size.max()
    raw = []
    codec.model.compressor.register_forward_hook(lambda *call: raw.append(call[2].detach()))
    codec.model.sig_to_lats(batch, lens=lens)
    codec.model.sig_to_lats(signals[0][None])
    together, single = raw[0][0, : raw[1].shape[1]], raw[1][0]
    frame, entry = (together != single).nonzero()[0].tolist()
    shift = torch.zeros(codec.model.quantizer.code_dim)
    # One of the two becomes exactly 0, which is bit 0, and the other one lies just above.
    shift[entry] = min(together[frame, entry], single[frame, entry])
    codec.model.compressor = Shifted(codec.model.compressor, shift)
    wanted = alone(codec, signals)
    batched = codec.model.sig_to_toks(batch, lens=lens)[0, : len(wanted[0]), None]
    assert not torch.equal(batched, wanted[0]), "the case is one that rounding decides"
    assert_equal(codec.sigs_to_toks(signals), wanted)


def test_few_utterances_are_encoded_twice(load):
    codec, signals = load(encoder="wavlm", code_dim=13), sigs(*range(8000, 16_000, 1000))
    calls = []
    codec.model.encoder.register_forward_hook(lambda *call: calls.append(len(call[2])))
    codec.sigs_to_toks(signals)
    assert calls[0] == len(signals) and len(calls) <= 2
    assert 1e-6 < TOLERANCE < 1e-4


def test_gpus_round_no_inputs_meanwhile(load):
    codec, flags = load(), []
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    codec.model.encoder.register_forward_hook(
        lambda *call: flags.append([backend.allow_tf32 for backend in backends])
    )
    codec.sigs_to_toks(sigs(500, 900))
    codec.sig_to_toks(sigs(500)[0][None])
    assert flags[0] == flags[-1] == [False, False]
    assert [backend.allow_tf32 for backend in backends] == before


def test_what_is_no_signal_is_refused(load):
    codec = load()
    with pytest.raises(ValueError, match="at least one sample"):
        codec.sigs_to_toks([torch.zeros(500), torch.zeros(0)])
    with pytest.raises(ValueError, match="not finite"):
        codec.sigs_to_toks([torch.zeros(500), torch.full((400,), torch.nan)])
