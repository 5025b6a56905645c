"""Codecs through their own packages, where those are installed, at toy size with random weights.

WavTokenizer and SemantiCodec have no wheels and are not tested.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from recipes.codecs.bigcodec import BigCodec
from recipes.codecs.chunked import Chunked
from recipes.codecs.codec import Codec
from recipes.codecs.conversion import convert
from recipes.codecs.speechtokenizer import SpeechTokenizer
from recipes.codecs.stablecodec import StableCodec, check_attention
from recipes.common.scoring import MissingPackageError
from tests.tiny_codecs import noise

# The packages use what PyTorch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")


def needs(*packages: str):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


needs_speechtokenizer = needs("speechtokenizer", "beartype")
needs_bigcodec = needs("bigcodec", "einops")
needs_stablecodec = needs("stable_codec", "stable_audio_tools", "k_diffusion")


class TinyBigCodec(BigCodec):
    """BigCodec of a few channels."""

    @staticmethod
    def _parts(package):
        return (
            package.CodecEncoder(ngf=4, out_channels=32),
            package.CodecDecoder(
                in_channels=32, upsample_initial_channel=64, vq_dim=32, codebook_size=64
            ),
        )


def speechtokenizer(folder: Path) -> SpeechTokenizer:
    from speechtokenizer import SpeechTokenizer as Model

    config = {
        "n_filters": 4,
        "strides": [8, 5, 4, 2],
        "dimension": 16,
        "semantic_dimension": 12,
        "bidirectional": True,
        "dilation_base": 2,
        "residual_kernel_size": 3,
        "n_residual_layers": 1,
        "lstm_layers": 2,
        "activation": "ELU",
        "codebook_size": 64,
        "n_q": 4,
        "sample_rate": 16000,
    }
    model = Model(config)
    for layer in model.quantizer.vq.layers:
        layer.codebook.normal_(std=0.01)
        layer._codebook.inited.fill_(1)
    (folder / "avg").mkdir()
    (folder / "avg" / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "avg" / "SpeechTokenizer.pt")
    return SpeechTokenizer(checkpoint=folder, subfolder="avg", num_codebooks=2)


def bigcodec(folder: Path) -> BigCodec:
    import bigcodec as package

    # The published file was saved with the older weight norm, whose names are converted.
    older = {"parametrizations.weight.original0": "weight_g"}
    older |= {"parametrizations.weight.original1": "weight_v"}
    states = {}
    for name, part in zip(("CodecEnc", "generator"), TinyBigCodec._parts(package), strict=True):
        states[name] = {}
        for key, value in part.state_dict().items():
            for new, old in older.items():
                key = key.replace(new, old)
            states[name][key] = value
    torch.save(states, folder / "bigcodec.pt")
    return TinyBigCodec(checkpoint=folder, weights="bigcodec.pt")


def stablecodec(folder: Path, *, num_codebooks: int = 2, window: tuple[int, int] = (-1, -1)):
    from stable_audio_tools.models import create_model_from_config

    sizes = {"channels": 128, "latent_dim": 6, "c_mults": [1, 1], "strides": [16, 40]}
    sizes |= {"transformer_depths": [1, 1], "sliding_window": list(window)}
    bottleneck = {"dim": 6, "levels": 17, "num_codebooks": 1, "dither_inference": False}
    config = {
        "model_type": "autoencoder",
        "sample_size": 64000,
        "sample_rate": 16000,
        "model": {
            "encoder": {"type": "taae", "config": sizes | {"in_channels": 1}},
            "decoder": {"type": "taae", "config": sizes | {"out_channels": 1}},
            "bottleneck": {"type": "dithered_fsq", "config": bottleneck},
            "latent_dim": 6,
            "downsampling_ratio": 640,
            "io_channels": 1,
        },
    }
    (folder / "model_config.json").write_text(json.dumps(config))
    model = create_model_from_config(config)
    torch.save({"state_dict": model.state_dict()}, folder / "model.ckpt")
    return StableCodec(checkpoint=folder, num_codebooks=num_codebooks)


@pytest.fixture(
    params=[
        pytest.param(speechtokenizer, marks=needs_speechtokenizer),
        pytest.param(bigcodec, marks=needs_bigcodec),
        pytest.param(stablecodec, marks=needs_stablecodec),
    ],
    ids=["speechtokenizer", "bigcodec", "stablecodec"],
)
def codec(request, tmp_path) -> Codec:
    return request.param(tmp_path)


def test_padding_and_neighbours_change_no_token(codec):
    sig, lens = noise(2, 5001), torch.tensor([1.0, 3001 / 5001])
    sig[1, 3001:] = float("nan")
    toks, alone = codec.sig_to_toks(sig, lens=lens), codec.sig_to_toks(sig[1:, :3001])
    num_toks = -(-5001 // codec.samples_per_tok)
    assert toks.shape == (2, num_toks, codec.num_codebooks) and toks.dtype == torch.int64
    assert torch.equal(toks[1:, : alone.shape[1]], alone)
    assert int(toks.max()) < codec.codebook_size


def test_everything_lasts_as_long_as_the_input(codec):
    sig, reference_sig = noise(1, 5001), noise(1, 3000, seed=1)
    assert codec.resynthesize(sig).sig.shape == sig.shape
    assert convert(codec, sig, reference_sig).shape == sig.shape
    chunked = Chunked(codec, chunk_size=1600, left_context=3200, overlap=100)
    assert chunked.resynthesize(sig).sig.shape == sig.shape


def test_features_of_tokens_decode_like_the_tokens(codec):
    toks = codec.sig_to_toks(noise(1, 5001))
    if codec.has_feats:
        qfeats = codec.toks_to_qfeats(toks)
        assert torch.equal(codec.feats_to_sig(qfeats), codec.toks_to_sig(toks))
        assert codec.sig_to_feats(noise(1, 5001)).shape == qfeats.shape
    else:
        assert codec.num_codebooks > 1


@needs_speechtokenizer
def test_speechtokenizer_equals_its_package(tmp_path):
    codec, sig = speechtokenizer(tmp_path), noise(1, 5001)
    with torch.no_grad():
        codes = codec.model.encode(sig[:, None])[:2]  # (K, B, L); the first of all four
        decoded = codec.model.decode(codes)
        quantized = codec.model.quantizer.decode(codes)
    toks = codec.sig_to_toks(sig)
    assert torch.equal(toks, codes.permute(1, 2, 0))
    assert torch.equal(codec.toks_to_sig(toks), decoded[:, 0])
    rows = sum(book[toks[..., k]] for k, book in enumerate(codec.embeddings()))
    torch.testing.assert_close(rows, quantized.transpose(1, 2), rtol=0, atol=1e-6)
    assert (codec.token_rate, codec.bitrate) == (50, 600)


@needs_bigcodec
def test_bigcodec_equals_its_package(tmp_path):
    codec, sig = bigcodec(tmp_path), noise(1, 5000)
    with torch.no_grad():
        quantized, codes, _ = codec.decoder(codec.encoder(sig[:, None]), vq=True)
        decoded = codec.decoder(quantized, vq=False)
    toks = codec.sig_to_toks(sig)
    assert torch.equal(toks[..., 0], codes[0])
    torch.testing.assert_close(codec.toks_to_sig(toks), decoded[:, 0], rtol=0, atol=1e-5)
    rows = codec.decoder.quantizer.layers[0].out_proj(codec.embeddings()[0][toks[..., 0]])
    torch.testing.assert_close(rows, codec.toks_to_qfeats(toks), rtol=0, atol=1e-6)
    assert (codec.token_rate, codec.bitrate) == (80, 480)


@needs_stablecodec
@pytest.mark.parametrize(("num_codebooks", "size"), [(1, 46656), (2, 15625), (4, 729)])
def test_stablecodec_equals_its_package(num_codebooks, size, tmp_path):
    codec, sig = stablecodec(tmp_path, num_codebooks=num_codebooks), noise(1, 6400)
    with torch.no_grad():
        _, codes = codec.model.encode(sig[:, None], posthoc_bottleneck=True)
        decoded = codec.model.decode(codes, posthoc_bottleneck=True)
    toks = codec.sig_to_toks(sig)
    assert torch.equal(toks, torch.cat(codes, dim=-1))
    torch.testing.assert_close(codec.toks_to_sig(toks), decoded[:, 0], rtol=0, atol=1e-6)
    rows = sum(book[toks[..., k]] for k, book in enumerate(codec.embeddings()))
    torch.testing.assert_close(rows, codec.toks_to_qfeats(toks), rtol=0, atol=1e-6)
    assert (codec.token_rate, codec.codebook_size) == (25, size)


@needs_stablecodec
def test_stablecodec_does_not_run_without_its_attention_windows(tmp_path):
    with pytest.raises(MissingPackageError, match="windows of .*FlashAttention on a GPU only"):
        stablecodec(tmp_path, window=(7, 8))


class Attention(torch.nn.Module):
    """What the package says of one attention."""

    def __init__(self, sliding_window, *, use_fa_flash):
        super().__init__()
        self.sliding_window, self.use_fa_flash = sliding_window, use_fa_flash


def test_attention_windows_without_flash_attention_are_a_missing_package():
    whole = Attention((-1, -1), use_fa_flash=False)
    check_attention(torch.nn.Sequential(whole, Attention((7, 8), use_fa_flash=True)), name="codec")
    windows = torch.nn.Sequential(whole, Attention([7, 8], use_fa_flash=False))
    with pytest.raises(MissingPackageError, match="^codec attends .*; pip install flash-attn --no"):
        check_attention(windows, name="codec")
