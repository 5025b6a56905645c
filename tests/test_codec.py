"""The codec: lengths, padding, the agreement of its conversions, and what it refuses."""

import math

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from focalcodec import FocalCodec, Quantized, __version__
from focalcodec.masking import num_valid
from tests.blocks import ABLATION

FACTORS = pytest.mark.parametrize(
    "factors", [(1, 1, 1), (2, 1, 1), (2, 2, 1)], ids=["50hz", "25hz", "12_5hz"]
)
ENCODERS = pytest.mark.parametrize("encoder", ["logmel", "wavlm"])
CHAIN = ("sig", "feats", "lats", "codes", "qfeats")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # float32: another blocking of the same sums


def make_sig(*shape):
    return 0.1 * torch.randn(*shape)


def pad_to_batch(sigs, *, padding=0.0):
    """Rows and their relative lengths."""
    size = max(sig.shape[1] for sig in sigs)
    batch = torch.full((len(sigs), size), padding)
    for row, sig in zip(batch, sigs, strict=True):
        row[: sig.shape[1]] = sig[0]
    return batch, torch.tensor([sig.shape[1] / size for sig in sigs])


def relative(lengths):
    return lengths / lengths.max()


@FACTORS
@ENCODERS
def test_output_has_as_many_samples_as_the_input(make_codec, encoder, factors):
    codec = make_codec(encoder=encoder, factors=factors)
    lengths = [*range(1, 1000, 53), 319, 320, 321, *torch.randint(1, 6000, (5,)).tolist()]
    for size in lengths:
        sig = make_sig(1, size)
        toks, codes, rec_sig = codec(sig)
        assert rec_sig.shape == (1, size)
        assert toks.shape == codes.shape[:2] == (1, codec.num_toks(size))
        torch.testing.assert_close(codec.toks_to_sig(toks, num_samples=size), rec_sig)


@ENCODERS
def test_tail_is_audio(make_codec, encoder):
    # 2559 samples: the published arithmetic gives 7 frames and holds the last sample for the rest.
    codec = make_codec(encoder=encoder)
    sig = make_sig(1, 2559)
    assert codec(sig).rec_sig[0, -300:].diff().abs().min() > 0


def test_published_arithmetic_repeats_the_last_sample(make_codec):
    codec = make_codec(encoder="wavlm")
    sig = make_sig(2, 2559)
    toks, _, rec_sig = codec(sig, exact_tail=False)
    assert toks.shape == (2, 7) == (2, codec.num_toks(2559, exact_tail=False))
    assert rec_sig.shape == (2, 2559)
    torch.testing.assert_close(rec_sig[:, :2240], codec.toks_to_sig(toks))
    assert (rec_sig[:, 2240:] == rec_sig[:, 2239:2240]).all()
    with_lens = codec(sig, lens=torch.tensor([1.0, 1800 / 2559]), exact_tail=False).rec_sig
    torch.testing.assert_close(with_lens[:1], rec_sig[:1], **TOLERANCE)
    alone = codec(sig[1:, :1800], exact_tail=False).rec_sig
    torch.testing.assert_close(with_lens[1:, :1800], alone, **TOLERANCE)
    assert (with_lens[1, 1800:] == 0).all()


@FACTORS
@ENCODERS
def test_batch_equals_single(make_codec, encoder, factors):
    codec = make_codec(encoder=encoder, factors=factors)
    sizes = [3200, 1, 319, 640, 641, 2999, 1281, 500]
    sigs = [make_sig(1, size) for size in sizes]
    batch, lens = pad_to_batch(sigs, padding=math.nan)
    toks, codes, rec_sig = codec(batch, lens=lens)
    feats = codec.sig_to_feats(batch, lens=lens)
    assert torch.equal(codec.sig_to_toks(batch, lens=lens), toks)
    for i, (sig, size) in enumerate(zip(sigs, sizes, strict=True)):
        alone = codec(sig)
        num_toks, num_frames = alone.toks.shape[1], codec.num_frames(size)
        assert torch.equal(toks[i, :num_toks], alone.toks[0])
        assert torch.equal(codes[i, :num_toks], alone.codes[0])
        torch.testing.assert_close(rec_sig[i, :size], alone.rec_sig[0], **TOLERANCE)
        assert (rec_sig[i, size:] == 0).all()
        torch.testing.assert_close(feats[i, :num_frames], codec.sig_to_feats(sig)[0], **TOLERANCE)
        assert (feats[i, num_frames:] == 0).all()


@pytest.mark.parametrize("parts", ABLATION.values(), ids=ABLATION)
def test_batch_equals_single_with_the_parts_of_the_ablation(make_codec, parts):
    codec = make_codec(factors=(2, 1, 1), **parts)
    sizes = [3200, 1, 641, 2999]
    sigs = [make_sig(1, size) for size in sizes]
    batch, lens = pad_to_batch(sigs, padding=math.nan)
    toks, codes, rec_sig = codec(batch, lens=lens)
    for i, (sig, size) in enumerate(zip(sigs, sizes, strict=True)):
        alone = codec(sig)
        num_toks = alone.toks.shape[1]
        assert torch.equal(toks[i, :num_toks], alone.toks[0])
        assert not toks[i, num_toks:].any() and not codes[i, num_toks:].any()
        torch.testing.assert_close(rec_sig[i, :size], alone.rec_sig[0], **TOLERANCE)
        assert not rec_sig[i, size:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("parts", ABLATION.values(), ids=ABLATION)
def test_parts_of_the_ablation_work_in_any_precision(make_codec, parts, dtype):
    codec = make_codec(**parts).to(dtype)
    toks, _, rec_sig = codec(make_sig(2, 3000).to(dtype), lens=torch.tensor([1.0, 0.5]))
    assert rec_sig.shape == (2, 3000) and rec_sig.isfinite().all()
    assert codec.toks_to_sig(toks).isfinite().all()


@pytest.mark.parametrize("parts", ABLATION.values(), ids=ABLATION)
def test_parts_of_the_ablation_decode_in_float32_under_autocast(make_codec, parts):
    codec = make_codec(**parts)
    sig = make_sig(1, 3000)
    with torch.autocast("cpu", torch.bfloat16):
        assert codec.feats_to_sig(codec.sig_to_qfeats(sig).float()).dtype == torch.float32


@pytest.mark.parametrize("parts", ABLATION.values(), ids=ABLATION)
def test_latents_give_the_tokens_of_their_signal(make_codec, parts):
    codec = make_codec(**parts)
    sig = make_sig(1, 6400)
    assert torch.equal(codec.lats_to_toks(codec.sig_to_lats(sig)), codec.sig_to_toks(sig))


@FACTORS
def test_decoding_ignores_padding(make_codec, factors):
    codec = make_codec(factors=factors)
    sizes = torch.tensor([3200, 1300, 320])
    toks = torch.randint(codec.codebook_size, (3, codec.num_toks(3200)))
    lens = relative(codec.num_toks(sizes))
    decoded = codec.toks_to_sig(toks, lens=lens, num_samples=sizes)
    for i, size in enumerate(sizes.tolist()):
        alone = codec.toks_to_sig(toks[i : i + 1, : codec.num_toks(size)], num_samples=size)
        torch.testing.assert_close(decoded[i : i + 1, :size], alone, **TOLERANCE)
        assert (decoded[i, size:] == 0).all()


def test_samples_per_row_imply_lens(make_codec):
    codec = make_codec(factors=(2, 1, 1))
    sizes = torch.tensor([3200, 1300])
    toks = torch.randint(codec.codebook_size, (2, codec.num_toks(3200)))
    lens = relative(codec.num_toks(sizes))
    codes = codec.toks_to_codes(toks)
    feats = codec.toks_to_qfeats(toks, lens=lens)
    frame_lens = codec.num_frames(sizes) / feats.shape[1]
    for decode, x, x_lens in (
        (codec.toks_to_sig, toks, lens),
        (codec.codes_to_sig, codes, lens),
        (codec.feats_to_sig, feats, frame_lens),
    ):
        expected = decode(x, lens=x_lens, num_samples=sizes)
        assert torch.equal(decode(x, num_samples=sizes), expected)
        assert expected.shape == (2, 3200)


@FACTORS
def test_conversions_agree_with_the_chain(make_codec, factors):
    codec = make_codec(encoder="wavlm", factors=factors)
    sizes = torch.tensor([3000, 1700])
    num_toks = codec.num_toks(sizes)
    sig = make_sig(2, 3000)
    lens = {"sig": relative(sizes), "feats": relative(codec.num_frames(sizes))}
    lens |= dict.fromkeys(("lats", "codes", "toks", "qfeats"), relative(num_toks))
    values = {"sig": sig}
    for x, y in zip(CHAIN, CHAIN[1:], strict=False):
        values[y] = getattr(codec, f"{x}_to_{y}")(values[x], lens=lens[x])
    values["toks"] = codec.codes_to_toks(values["codes"])
    # Codes of padding are 0 in a batch; as tokens they come back as some code, which lens hide.
    real = torch.arange(num_toks.max()) < num_toks[:, None]
    assert torch.equal(codec.toks_to_codes(values["toks"])[real], values["codes"][real])
    order = ("sig", "feats", "lats", "codes", "toks", "qfeats")
    pairs = [(x, y) for i, x in enumerate(order) for y in order[i + 1 :]]
    for x, y in set(pairs) - {("codes", "toks"), ("toks", "codes")}:
        got = getattr(codec, f"{x}_to_{y}")(values[x], lens=lens[x])
        torch.testing.assert_close(got, values[y], **TOLERANCE, msg=f"{x}_to_{y}")
    rec_sig = codec(sig, lens=lens["sig"]).rec_sig
    for x, name in (("toks", "toks"), ("codes", "codes"), ("qfeats", "feats")):
        got = getattr(codec, f"{name}_to_sig")(values[x], lens=lens[x])
        got = got[:, :3000].where(torch.arange(3000) < sizes[:, None], 0.0)
        torch.testing.assert_close(got, rec_sig, **TOLERANCE, msg=f"{name}_to_sig")


def test_lats_are_of_unit_length_and_have_the_same_signs(make_codec):
    codec = make_codec(encoder="wavlm")
    sig = make_sig(1, 6400)
    lats = codec.sig_to_lats(sig)
    torch.testing.assert_close(lats.norm(dim=-1), torch.ones(1, 20))
    codes = codec.sig_to_codes(sig)
    assert torch.equal(lats > 0, codes > 0)
    assert torch.equal(codes.abs(), torch.full_like(codes, codec.quantizer.code_dim**-0.5))
    assert torch.equal(codec.codebook[codec.sig_to_toks(sig)], codes)


def test_rates_and_sizes(make_codec):
    codec = make_codec(factors=(2, 2, 1), code_dim=6)
    assert (codec.sample_rate, codec.sample_rate_input, codec.sample_rate_output) == (16000,) * 3
    assert (codec.hop_length, codec.frame_rate, codec.token_rate) == (320, 50.0, 12.5)
    assert (codec.codebook_size, codec.bitrate) == (64, 75.0)
    assert [codec.num_toks(n) for n in (1, 320, 1280, 1281)] == [1, 1, 1, 2]
    assert codec.num_toks(torch.tensor([1, 1281])).tolist() == [1, 2]
    assert codec.codebook.shape == (64, 6)
    assert Quantized._fields == ("toks", "codes") and __version__


def test_decoder_of_another_rate_decides_the_output_rate(make_codec):
    parts = dict(make_codec().named_children())
    parts["decoder"] = make_codec(hop_length=480).decoder
    with pytest.raises(ValueError, match=r"encoder\.hop_length is 320 .*decoder\.hop_length.* 480"):
        FocalCodec(**parts)
    parts["decoder"].sample_rate = 24000
    codec = FocalCodec(**parts)
    assert (codec.sample_rate_input, codec.sample_rate_output) == (16000, 24000)
    sig = make_sig(2, 1001)
    assert codec(sig).rec_sig.shape == (2, 1501)
    rec_sig = codec(sig, lens=torch.tensor([1.0, 0.5])).rec_sig
    assert rec_sig.shape == (2, 1501)
    size = int(num_valid(torch.tensor([0.5]), 1001)) * 3 // 2
    assert (rec_sig[1, size:] == 0).all() and (rec_sig[1, size - 1] != 0)


def test_gradients_pass_the_quantizer(make_codec):
    codec = make_codec(encoder="wavlm").train()
    sig = make_sig(2, 1600).requires_grad_()
    codec.sig_to_qfeats(sig, lens=torch.tensor([1.0, 0.5])).square().sum().backward()
    for part in (codec.encoder, codec.compressor, codec.decompressor):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
    assert all(p.grad is None for p in codec.decoder.parameters())
    assert sig.grad[0].abs().sum() > 0
    assert (sig.grad[1, 800:] == 0).all()


@pytest.mark.parametrize(
    ("replaced", "settings", "keys"),
    [
        ("encoder", {"dim": 20}, r"encoder\.dim is 20 but compressor\.input_dim is 16"),
        ("quantizer", {"code_dim": 7}, r"quantizer\.code_dim is 7 but compressor\.output_dim is 6"),
        ("compressor", {"factors": (2, 1, 1)}, r"downscale_factors \[2, 1, 1\].*upscale_factors"),
        (
            "compressor",
            {"code_dim": 7},
            r"quantizer\.code_dim is 6 but compressor\.output_dim is 7",
        ),
        (
            "decompressor",
            {"code_dim": 7},
            r"quantizer\.code_dim is 6 but decompressor\.input_dim is 7; .*"
            r"input_dim: !ref <quantizer\.code_dim>",
        ),
        ("decompressor", {"dim": 20}, r"encoder\.dim is 16 but decompressor\.output_dim is 20"),
        ("decoder", {"dim": 20}, r"encoder\.dim is 16 but decoder\.input_dim is 20"),
        ("decoder", {"hop_length": 480}, r"decoder\.hop_length is 480"),
    ],
)
def test_parts_that_do_not_fit_are_named_by_their_keys(make_codec, replaced, settings, keys):
    parts = dict(make_codec().named_children())
    parts[replaced] = getattr(make_codec(**settings), replaced)
    with pytest.raises(ValueError, match=keys):
        FocalCodec(**parts)


@pytest.mark.parametrize(
    ("sig", "lens", "message"),
    [
        (torch.zeros(320), None, r"add a batch axis with sig\[None\]"),
        (torch.zeros(1, 2, 320), None, "mix the channels down"),
        (torch.zeros(1, 0), None, "at least one sample"),
        (torch.zeros(0, 320), None, "at least one sample"),
        (torch.zeros(1, 320, dtype=torch.int16), None, r"int16.*sig\.float\(\) / 32768"),
        (torch.zeros(1, 320, dtype=torch.float64), None, r"float32, got torch\.float64"),
        (torch.tensor([[0.0, math.nan]]), None, "sig holds 1 values that are not finite of 2"),
        (torch.tensor([[0.0, -math.inf]]), None, "not finite"),
        (torch.zeros(2, 320), torch.tensor([1.0]), r"lens must be \(2,\)"),
        (torch.zeros(2, 320), torch.tensor([0.0, 1.0]), r"in \(0, 1\]"),
        (torch.zeros(2, 320), torch.tensor([320.0, 160.0]), "divide absolute lengths"),
        (torch.zeros(2, 320), torch.tensor([math.nan, 1.0]), r"in \(0, 1\]"),
        (torch.zeros(2, 320), torch.tensor([1, 1]), r"in \(0, 1\]"),
    ],
)
def test_bad_signals_are_refused(make_codec, sig, lens, message):
    codec = make_codec()
    with pytest.raises(ValueError, match=message):
        codec.sig_to_toks(sig, lens=lens)
    with pytest.raises(ValueError, match=message):
        codec(sig, lens=lens)


@pytest.mark.parametrize("lens", [None, torch.tensor([1.0, 0.5])], ids=["whole", "lens"])
def test_an_encoder_that_overflows_is_an_error(make_codec, lens):
    # The largest float32 numbers are finite samples, but their spectrum is not.
    sig = torch.full((2, 640), 3e38)
    with pytest.raises(ValueError, match=r"overflows.*peaks at 3e\+38"):
        make_codec().sig_to_toks(sig, lens=lens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@ENCODERS
def test_a_codec_of_any_precision_encodes_and_decodes(make_codec, encoder, dtype):
    codec = make_codec(encoder=encoder, factors=(2, 1, 1)).to(dtype)
    sig, lens = make_sig(2, 3000).to(dtype), torch.tensor([1.0, 0.5])
    toks, codes, rec_sig = codec(sig, lens=lens)
    assert codec.sig_to_feats(sig).dtype == codec.sig_to_qfeats(sig).dtype == dtype
    decoded = codec.toks_to_sig(toks, lens=lens, num_samples=3000)
    # Tokens give codes of float32, which float64 tells from its own.
    from_codes = codec.codes_to_sig(codes, lens=lens, num_samples=3000)
    torch.testing.assert_close(from_codes, decoded, **TOLERANCE)
    assert rec_sig.shape == decoded.shape and bool(rec_sig.isfinite().all())


def test_codebook_is_where_the_codec_is(make_codec):
    assert make_codec().to("meta").codebook.device.type == "meta"


def test_bad_sequences_are_refused(make_codec):
    codec = make_codec(code_dim=6)
    with pytest.raises(ValueError, match=r"feats must be \(B, frames, 16\).*\(1, 3, 8\)"):
        codec.feats_to_toks(torch.zeros(1, 3, 8))
    with pytest.raises(ValueError, match="feats holds 1 values that are not finite"):
        codec.feats_to_toks(torch.full((1, 1, 16), 0.0).index_fill(2, torch.tensor(0), math.nan))
    with pytest.raises(ValueError, match=r"codes must be \(B, frames, 6\)"):
        codec.codes_to_sig(torch.zeros(1, 0, 6))
    with pytest.raises(ValueError, match=r"toks must be \(B, L\).*toks\[None\]"):
        codec.toks_to_sig(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one token"):
        codec.toks_to_sig(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="must be integers"):
        codec.toks_to_sig(torch.zeros(1, 3))
    for tok in (-1, 64):
        with pytest.raises(ValueError, match=r"must be in \[0, 64\)"):
            codec.toks_to_sig(torch.tensor([[tok]]))


@pytest.mark.parametrize(
    ("num_samples", "message"),
    [
        (0, "at least 1"),
        (961, "at most 960"),
        (1.5, "must be an integer"),
        (torch.tensor([960]), r"\(2,\) integers"),
        (torch.tensor([960, 961]), "at most 960"),
        (torch.tensor([960.0, 960.0]), "must be an integer"),
    ],
)
def test_impossible_numbers_of_samples_are_refused(make_codec, num_samples, message):
    codec = make_codec()
    with pytest.raises(ValueError, match=message):
        codec.toks_to_sig(torch.zeros(2, 3, dtype=torch.long), num_samples=num_samples)


def test_published_quickstart_runs(codec_folder, root, tmp_path):
    # The published README's way, from loading through torch.hub to audio at the file's own rate;
    # soundfile stands in for torchaudio's reading and writing, which need torchcodec.
    source = tmp_path / "speech.wav"
    soundfile.write(source, 0.1 * np.random.default_rng(0).standard_normal(20_001), 24_000)
    codec = torch.hub.load(str(root), "focalcodec", source="local", config=str(codec_folder))
    codec.eval().requires_grad_(False)
    wav, sample_rate = soundfile.read(source, dtype="float32")
    sig = torchaudio.functional.resample(
        torch.from_numpy(wav)[None], sample_rate, codec.sample_rate_input
    )
    toks = codec.sig_to_toks(sig)
    codes = codec.toks_to_codes(toks)
    rec_sig = codec.toks_to_sig(toks)
    rec_sig = torchaudio.functional.resample(rec_sig, codec.sample_rate_output, sample_rate)
    soundfile.write(tmp_path / "reconstruction.wav", rec_sig[0].numpy(), sample_rate)
    assert toks.shape == (1, 42) and codes.shape == (1, 42, 13)
    assert soundfile.info(tmp_path / "reconstruction.wav").frames == 42 * 320 * 3 // 2


def test_config_gives_the_same_codec_with_new_weights(make_codec, tmp_path):
    codec = make_codec(encoder="wavlm", factors=(2, 1, 1))
    codec.save_pretrained(tmp_path / "trained")
    new = FocalCodec.from_config(tmp_path / "trained", overrides={"encoder_config.dropout": 0.5})
    assert new.encoder.dropout == 0.5 and codec.encoder.dropout == 0
    assert {k: v.shape for k, v in new.state_dict().items()} == {
        k: v.shape for k, v in codec.state_dict().items()
    }
    assert all(parameter.requires_grad for parameter in new.parameters())
    assert new.model_id == ""
    loaded = FocalCodec.from_pretrained(tmp_path / "trained")
    assert loaded.model_id == "trained"
    assert loaded.fingerprint == codec.fingerprint != new.fingerprint
    (tmp_path / "trained" / "config.json").rename(tmp_path / "trained" / "other.json")
    (tmp_path / "trained" / "model.safetensors").rename(tmp_path / "trained" / "other.safetensors")
    assert FocalCodec.from_pretrained(tmp_path / "trained" / "other").model_id == "other"
