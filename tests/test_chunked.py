"""Chunk-wise inference: the codec's own output where chunks do not matter, no clicks elsewhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.codecs.chunked import Chunked
from recipes.codecs.focalcodec import FocalCodec
from recipes.codecs.live import Live
from tests.causal_codecs import CODECS, make_causal_codec
from tests.tiny_codecs import Pcm, Plateau, noise

SIZES = {
    "paper": (8000, 48000, 250),
    "2000": (2000, 48000, 250),
    "no overlap": (1000, 3000, 0),
    "no context": (1000, 0, 250),
    "one sample of overlap": (1000, 700, 1),
    "overlap of a chunk": (333, 1000, 333),
}


@pytest.fixture
def codec(make_codec, tmp_path) -> FocalCodec:
    make_codec().save_pretrained(tmp_path)
    return FocalCodec(checkpoint=tmp_path)


@pytest.mark.parametrize(("chunk_size", "left_context", "overlap"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("block", [1, 320])
def test_equal_windows_give_the_signal_back(chunk_size, left_context, overlap, upsample, block):
    codec, sig = Pcm(block=block, upsample=upsample), noise(1, 20_017)
    chunked = Chunked(codec, chunk_size=chunk_size, left_context=left_context, overlap=overlap)
    torch.testing.assert_close(
        chunked.resynthesize(sig).sig, codec.resynthesize(sig).sig, rtol=0, atol=0
    )


@given(
    num_samples=st.integers(1, 3000),
    chunk_size=st.integers(1, 900),
    left_context=st.integers(0, 2000),
    data=st.data(),
)
def test_every_split_keeps_length_and_samples(num_samples, chunk_size, left_context, data):
    overlap = data.draw(st.integers(0, chunk_size))
    chunk_size = max(chunk_size, num_samples // 20)
    codec, sig = Pcm(block=32), noise(1, num_samples)
    chunked = Chunked(codec, chunk_size=chunk_size, left_context=left_context, overlap=overlap)
    assert torch.equal(chunked.resynthesize(sig).sig, codec.resynthesize(sig).sig)


@pytest.mark.parametrize("chunk_size", [2000, 4000, 8000, 5003])
def test_output_is_as_long_as_input(codec, chunk_size):
    sig = noise(1, 17_001)
    decoded = Chunked(codec, chunk_size=chunk_size, left_context=6400).resynthesize(sig).sig
    assert decoded.shape == sig.shape and bool(decoded.isfinite().all())


@pytest.mark.parametrize("num_samples", [1, 320, 9999, 10_000])
def test_a_chunk_that_holds_the_signal_is_the_codec_itself(codec, num_samples):
    sig = noise(1, num_samples)
    got = Chunked(codec, chunk_size=10_000).resynthesize(sig)
    expected = codec.toks_to_sig(codec.sig_to_toks(sig), num_samples=num_samples)
    assert torch.equal(got.toks, codec.sig_to_toks(sig)) and torch.equal(got.sig, expected)


def test_first_chunk_is_decoded_from_itself_and_its_overlap(codec):
    sig = noise(1, 12_000)
    got = Chunked(codec, chunk_size=4000, overlap=250).resynthesize(sig)
    toks = codec.sig_to_toks(sig[:, :4250])
    assert torch.equal(got.toks[:, : toks.shape[1]], toks)
    assert torch.equal(got.sig[:, :4000], codec.toks_to_sig(toks)[:, :4000])


def test_later_chunks_are_decoded_with_their_left_context(codec):
    sig = noise(1, 12_000)
    got = Chunked(codec, chunk_size=4000, left_context=3200, overlap=250).resynthesize(sig)
    window = codec.toks_to_sig(codec.sig_to_toks(sig[:, 4800:12_000]))  # of the third chunk
    assert torch.equal(got.sig[:, 8250:], window[:, 3450:7200])


def test_what_comes_after_chunk_and_overlap_changes_nothing_before(codec):
    sig, chunked = noise(1, 12_000), Chunked(codec, chunk_size=2000, overlap=250)
    changed = sig.clone()
    changed[:, 6250:] = 0
    before, after = chunked.resynthesize(sig).sig, chunked.resynthesize(changed).sig
    assert torch.equal(before[:, :6000], after[:, :6000])
    assert not torch.equal(before[:, 6000:], after[:, 6000:])


def test_latency_is_chunk_and_overlap():
    assert Chunked(Pcm(), chunk_size=8000, overlap=250).latency_ms == pytest.approx(515.625)


@pytest.mark.parametrize("size", [1, 7, 16, 20, 40, 60, 97, 250])
def test_live_latency_is_the_longest_that_a_sample_waits_for_its_tokens(size, tmp_path):
    make_causal_codec(**CODECS["published"]).save_pretrained(tmp_path)
    codec = FocalCodec(checkpoint=tmp_path)
    assert codec.model.chunk_size == 40 and codec.samples_per_tok == 10
    stream, num_encoded, longest = codec.open_stream(), 0, 0
    sig = noise(1, 40 * size)  # pieces and the codec's chunks have ended together by then
    for arrived in range(size, sig.shape[1] + 1, size):
        toks = stream.encode(sig[:, arrived - size : arrived])
        if toks.shape[1]:
            longest = max(longest, arrived - num_encoded)
        num_encoded += toks.shape[1] * codec.samples_per_tok
    assert num_encoded == sig.shape[1]
    assert Live(codec, chunk_size=size).latency_ms == pytest.approx(1000 * longest / 16_000)


def test_chunks_that_disagree_are_cross_faded_linearly():
    sig = torch.zeros(1, 3000)
    sig[:, 1099], sig[:, 2099], sig[:, 2999] = 0.5, -0.5, 0.25  # last samples of the windows
    decoded = Chunked(Plateau(), chunk_size=1000, overlap=100).resynthesize(sig).sig[0]
    weight = (torch.arange(100) + 0.5) / 100
    expected = torch.cat(
        [
            torch.full((1000,), 0.5),
            0.5 + weight * (-0.5 - 0.5),
            torch.full((900,), -0.5),
            -0.5 + weight * (0.25 + 0.5),
            torch.full((900,), 0.25),
        ]
    )
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-4)  # 16-bit tokens
    assert float(decoded.diff().abs().max()) < 1.05 / 100


def test_codec_never_sees_more_than_a_window():
    codec = Pcm(block=320)
    Chunked(codec, chunk_size=1000, left_context=3000, overlap=250).resynthesize(noise(1, 30_000))
    assert 3000 < codec.longest <= 4250


@pytest.mark.parametrize("chunk_size", [2000, 4000, 8000])
def test_bitrate_counts_the_tokens_that_are_returned(chunk_size):
    codec, num_chunks = Pcm(block=320), 7
    chunked = Chunked(codec, chunk_size=chunk_size, left_context=3200, overlap=250)
    sig = noise(1, num_chunks * chunk_size + 250)
    per_chunk = math.ceil((chunk_size + 250) / 320)
    toks = chunked.resynthesize(sig).toks
    assert toks.shape[1] == num_chunks * per_chunk + 1  # and one for the last 250 samples
    seconds = chunk_size / 16000
    assert chunked.bitrate == pytest.approx(per_chunk * 320 * 16 / seconds)
    assert chunked.bitrate > codec.bitrate
    assert chunked.bitrate_with_context == pytest.approx((per_chunk + 10) * 320 * 16 / seconds)


def test_tokens_of_a_chunk_begin_with_its_first_sample():
    codec, sig = Pcm(block=320), noise(1, 4000)
    toks = Chunked(codec, chunk_size=1000, left_context=500, overlap=0).resynthesize(sig).toks
    starts = codec.toks_to_sig(toks).view(-1, 320)[::4, 0]
    torch.testing.assert_close(starts, sig[0, ::1000], rtol=0, atol=1e-4)  # 16 bits


def test_it_describes_itself_as_its_codec(codec):
    chunked = Chunked(codec)
    for name in ("name", "model_id", "sample_rate", "sample_rate_output", "token_rate"):
        assert getattr(chunked, name) == getattr(codec, name)
    assert chunked.num_codebooks == 1 and chunked.codebook_size == codec.codebook_size
    assert torch.equal(chunked.embeddings(), codec.embeddings())


@pytest.mark.parametrize(
    "sizes",
    [{"chunk_size": 0}, {"overlap": -1}, {"left_context": -1}, {"chunk_size": 100, "overlap": 101}],
    ids=str,
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="chunk_size >= 1, left_context >= 0 and overlap from 0"):
        Chunked(Pcm(), **sizes)


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"one utterance \(1, T\), got \(2, 100\)"):
        Chunked(Pcm()).resynthesize(noise(2, 100))
