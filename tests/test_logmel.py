"""The log-mel encoder: framing, scale, and independence of padding."""

import pytest
import soundfile
import torch
import torchaudio

from focalcodec.logmel import LogMel


@pytest.fixture
def encoder() -> LogMel:
    return LogMel()


@pytest.mark.parametrize(
    "sizes",
    [
        dict(n_fft=1024, n_mels=80, f_min=0.0, f_max=8000.0),
        dict(n_fft=640, n_mels=20, f_min=60.0, f_max=7600.0),
    ],
    ids=["default", "small"],
)
def test_filters_equal_torchaudio(sizes):
    encoder = LogMel(**sizes)
    expected = torchaudio.functional.melscale_fbanks(
        sizes["n_fft"] // 2 + 1, sizes["f_min"], sizes["f_max"], sizes["n_mels"], 16000
    )
    # torchaudio computes the edges in float32
    torch.testing.assert_close(encoder.filters, expected, atol=1e-4, rtol=0)


def test_feats_equal_torchaudio_spectrogram(encoder):
    sig = torch.randn(2, 3200)
    spectrogram = torchaudio.transforms.MelSpectrogram(
        n_fft=1024, hop_length=320, n_mels=80, power=1.0, center=False
    )
    mel = spectrogram(torch.nn.functional.pad(sig, (352, 352))).transpose(1, 2)
    expected = (mel.clamp(min=1e-3).log() + 1.08) / 1.94
    torch.testing.assert_close(encoder(sig), expected, atol=1e-3, rtol=0)  # edges as above


@pytest.mark.parametrize("frame", [0, 4, 9])
def test_frame_is_centred_on_its_hop(encoder, frame):
    sig = torch.zeros(1, 3200)
    sig[0, frame * 320 + 160] = 1.0
    assert encoder(sig).sum(-1).argmax() == frame


@pytest.mark.parametrize("hop_length", [320, 321])
def test_frames_are_whole_hops_and_at_least_one(hop_length):
    encoder = LogMel(hop_length=hop_length)
    for size in (1, hop_length - 1, hop_length, 2 * hop_length - 1, 2 * hop_length, 3000):
        assert encoder(torch.randn(1, size)).shape == (1, encoder.num_frames(size), encoder.dim)
    frames = torch.arange(1, 2000)
    torch.testing.assert_close(encoder.num_frames(encoder.num_samples(frames)), frames)
    assert (encoder.num_frames(encoder.num_samples(frames[1:]) - 1) == frames[:-1]).all()
    assert encoder.num_frames(hop_length - 1) == 1


@pytest.mark.parametrize("garbage", [0.0, 3.0, float("nan")], ids=["zeros", "noise", "nan"])
def test_feats_ignore_padding(encoder, garbage):
    sizes = [9600, 9599, 5000, 641, 320, 100, 1]
    alone = [torch.randn(1, size) for size in sizes]
    batch = torch.cat([torch.nn.functional.pad(x, (0, 9600 - x.shape[1])) for x in alone])
    for row, size in zip(batch, sizes, strict=True):
        row[size:] = garbage
    feats = encoder(batch, lens=torch.tensor(sizes) / 9600)
    for x, item in zip(alone, feats, strict=True):
        expected = encoder(x)[0]
        # float32 sums in another order
        torch.testing.assert_close(item[: len(expected)], expected, atol=1e-5, rtol=0)
        assert (item[len(expected) :] == 0).all()


def test_nothing_to_train_or_to_save(encoder):
    assert not encoder.state_dict() and not list(encoder.parameters())


def test_feats_are_float32_under_autocast(encoder):
    sig = torch.randn(1, 1600)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feats = encoder(sig)
    assert feats.dtype == torch.float32
    torch.testing.assert_close(feats, encoder(sig))


def test_speech_has_unit_scale(encoder, shared):
    files = sorted((shared / "data/speech/train-clean-100").rglob("*.flac"))[::6]
    feats = []
    for file in files:
        samples, _ = soundfile.read(file, dtype="float32")
        feats.append(encoder(torch.from_numpy(samples)[None])[0])
    feats = torch.cat(feats)
    assert abs(feats.mean()) < 0.2 and abs(feats.std() - 1) < 0.1  # a few speakers of many


def test_silence_is_finite(encoder):
    assert encoder(torch.zeros(1, 640)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(f_max=9000.0), "f_max"),
        (dict(n_fft=256), "n_fft"),
        (dict(n_mels=400), "n_mels"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogMel(**arguments)


@pytest.mark.parametrize("sig", [torch.zeros(5), torch.zeros(1, 5, dtype=torch.int16)])
def test_wrong_input_is_refused(encoder, sig):
    with pytest.raises(ValueError, match="sig"):
        encoder(sig)
    with pytest.raises(ValueError, match="lens"):
        encoder(torch.zeros(2, 500), lens=torch.ones(3))
