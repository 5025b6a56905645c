"""Voice conversion by the protocol: what comes from the source and what from the reference."""

import pytest
import torch

from focalcodec.conversion import knn
from recipes.codecs.conversion import convert, mix_toks
from recipes.codecs.focalcodec import FocalCodec
from recipes.codecs.mimi import Mimi
from tests.tiny_codecs import Pcm, noise, write_mimi


@pytest.fixture
def single(make_codec, tmp_path) -> FocalCodec:
    make_codec(factors=(2, 1, 1)).save_pretrained(tmp_path)
    return FocalCodec(checkpoint=tmp_path)


@pytest.fixture
def several(tmp_path) -> Mimi:
    write_mimi(tmp_path)
    return Mimi(checkpoint=tmp_path, num_codebooks=5)


@pytest.mark.parametrize("num_reference_toks", [3, 7, 10], ids=["repeated", "equal", "truncated"])
def test_first_codebook_is_the_source_and_the_others_are_the_reference(num_reference_toks):
    toks = torch.arange(7 * 3).view(1, 7, 3)
    reference_toks = 100 + torch.arange(num_reference_toks * 3).view(1, num_reference_toks, 3)
    mixed = mix_toks(toks, reference_toks)
    assert torch.equal(mixed[..., 0], toks[..., 0])
    for step in range(7):
        expected = reference_toks[0, step % num_reference_toks, 1:]
        assert torch.equal(mixed[0, step, 1:], expected)


@pytest.mark.parametrize("num_reference_samples", [4000, 30_000], ids=["shorter", "longer"])
def test_several_codebooks_are_mixed_and_decoded(several, num_reference_samples):
    sig, reference_sig = noise(1, 12_007), noise(1, num_reference_samples, seed=1)
    mixed = mix_toks(several.sig_to_toks(sig), several.sig_to_toks(reference_sig))
    converted = convert(several, sig, reference_sig)
    assert torch.equal(converted, several.toks_to_sig(mixed, num_samples=12_007))
    assert not torch.equal(converted, several.resynthesize(sig).sig)


def test_several_codebooks_of_the_source_itself_are_its_resynthesis(several):
    sig = noise(1, 12_007)
    assert torch.equal(convert(several, sig, sig), several.resynthesize(sig).sig)


@pytest.mark.parametrize("topk", [1, 4])
def test_one_codebook_is_converted_by_neighbours_of_its_features(single, topk):
    sig, reference_sig = noise(1, 8007), noise(1, 9000, seed=1)
    feats = single.toks_to_qfeats(single.sig_to_toks(sig))
    matching_set = single.sig_to_feats(reference_sig)[0]
    expected = single.feats_to_sig(knn(feats, matching_set, topk=topk), num_samples=8007)
    assert torch.equal(convert(single, sig, reference_sig, topk=topk), expected)


def test_neighbours_are_four_unless_told_otherwise(single):
    sig, reference_sig = noise(1, 8007), noise(1, 9000, seed=1)
    four = convert(single, sig, reference_sig, topk=4)
    assert torch.equal(convert(single, sig, reference_sig), four)
    assert not torch.equal(convert(single, sig, reference_sig, topk=1), four)


def test_converted_speech_lasts_as_long_as_the_source_at_the_output_rate():
    codec = Pcm(block=320, upsample=2)
    assert convert(codec, noise(1, 5001), noise(1, 777)).shape == (1, 10_002)


def test_one_codebook_without_features_is_refused():
    with pytest.raises(ValueError, match="PCM has one codebook and gives no features"):
        convert(Pcm(), noise(1, 100), noise(1, 100))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 100), (1, 100)), r"sig must be one utterance \(1, T\), got \(2, 100\)"),
        (((1, 100), (100,)), r"reference_sig must be one utterance \(1, T\), got \(100,\)"),
    ],
    ids=["batch", "no batch axis"],
)
def test_other_than_single_utterances_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        convert(Pcm(block=2), *(torch.zeros(shape) for shape in shapes))
