"""Codecs behind one protocol: their packages' own tokens and signals, one utterance at a time."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from recipes.codecs.codec import Codec
from recipes.codecs.dac import DAC
from recipes.codecs.encodec import EnCodec
from recipes.codecs.focalcodec import FocalCodec
from recipes.codecs.mimi import Mimi
from tests.tiny_codecs import Pcm, noise, write_dac, write_encodec, write_mimi

BLOCKS = sorted((Path(__file__).parents[1] / "recipes/hparams/codec").glob("*.yaml"))
NUM_SAMPLES = 6007  # no multiple of anything


def focalcodec(folder: Path, make_codec) -> FocalCodec:
    make_codec(factors=(2, 1, 1)).save_pretrained(folder)
    return FocalCodec(checkpoint=folder)


def encodec(folder: Path, make_codec) -> EnCodec:
    write_encodec(folder)
    return EnCodec(checkpoint=folder, num_codebooks=2)


def dac(folder: Path, make_codec) -> DAC:
    write_dac(folder)
    return DAC(checkpoint=folder, num_codebooks=2)


def mimi(folder: Path, make_codec) -> Mimi:
    write_mimi(folder)
    return Mimi(checkpoint=folder, num_codebooks=5)


@pytest.fixture(params=[focalcodec, encodec, dac, mimi], ids=lambda maker: maker.__name__)
def codec(request, tmp_path, make_codec) -> Codec:
    return request.param(tmp_path / "checkpoint", make_codec)


# Tokens


def test_tokens_have_their_rate_number_and_range(codec):
    toks = codec.sig_to_toks(noise(2, NUM_SAMPLES))
    num_toks = math.ceil(NUM_SAMPLES * codec.token_rate / codec.sample_rate)
    assert toks.shape == (2, num_toks, codec.num_codebooks) and toks.dtype == torch.int64
    assert 0 <= int(toks.min()) and int(toks.max()) < codec.codebook_size
    assert all(len(book.unique()) > 1 for book in toks.flatten(0, 1).T), "the signal matters"


@pytest.mark.parametrize(
    ("maker", "rates", "bitrate"),
    [
        (focalcodec, (16000, 25, 1, 2**6), 150),
        (encodec, (24000, 75, 2, 1024), 1500),
        (dac, (16000, 50, 2, 64), 600),
        (mimi, (24000, 12.5, 5, 64), 375),
    ],
    ids=["focalcodec", "encodec", "dac", "mimi"],
)
def test_rates_are_those_of_the_checkpoint(maker, rates, bitrate, tmp_path, make_codec):
    codec = maker(tmp_path, make_codec)
    found = codec.sample_rate, codec.token_rate, codec.num_codebooks, codec.codebook_size
    assert found == rates and codec.bitrate == pytest.approx(bitrate)
    assert codec.sample_rate_output == codec.sample_rate
    assert codec.samples_per_tok * codec.token_rate == codec.sample_rate


def test_padding_and_neighbours_change_no_token(codec):
    sig, lens = noise(3, NUM_SAMPLES), torch.tensor([4001, NUM_SAMPLES, 700]) / NUM_SAMPLES
    sig[0, 4001:] = sig[2, 700:] = float("nan")
    toks = codec.sig_to_toks(sig, lens=lens)
    for row, size in enumerate([4001, NUM_SAMPLES, 700]):
        alone = codec.sig_to_toks(sig[row : row + 1, :size])
        assert torch.equal(toks[row : row + 1, : alone.shape[1]], alone)
        assert not toks[row, alone.shape[1] :].any()


def test_padding_and_neighbours_change_no_sample(codec):
    toks = codec.sig_to_toks(noise(2, NUM_SAMPLES))
    size = toks.shape[1] - 1
    toks[0, size:] = -1  # padding, whatever it holds
    decoded = codec.toks_to_sig(toks, lens=torch.tensor([size / toks.shape[1], 1.0]))
    alone = codec.toks_to_sig(toks[:1, :size])
    assert torch.equal(decoded[:1, : alone.shape[1]], alone)
    assert not decoded[0, alone.shape[1] :].any()
    assert torch.equal(decoded[1:], codec.toks_to_sig(toks[1:]))


@pytest.mark.parametrize("num_samples", [1, 320, 1921, NUM_SAMPLES])
def test_decoded_signal_lasts_as_long_as_the_input(codec, num_samples):
    sig = noise(1, num_samples)
    decoded = codec.toks_to_sig(codec.sig_to_toks(sig))
    assert abs(decoded.shape[1] - num_samples) < codec.samples_per_tok
    assert codec.resynthesize(sig).sig.shape == sig.shape


@pytest.mark.parametrize("num_samples", [100, 10_000])
def test_num_samples_cuts_and_pads(codec, num_samples):
    toks = codec.sig_to_toks(noise(1, NUM_SAMPLES))
    decoded, cut = codec.toks_to_sig(toks), codec.toks_to_sig(toks, num_samples=num_samples)
    size = min(num_samples, decoded.shape[1])
    assert cut.shape == (1, num_samples)
    assert torch.equal(cut[:, :size], decoded[:, :size]) and not cut[:, size:].any()


def test_resynthesis_is_encoding_and_decoding_of_each_row(codec):
    sig, lens = noise(2, NUM_SAMPLES), torch.tensor([1.0, 4001 / NUM_SAMPLES])
    decoded, toks = codec.resynthesize(sig, lens=lens)
    assert torch.equal(toks, codec.sig_to_toks(sig, lens=lens)) and decoded.shape == sig.shape
    alone = codec.toks_to_sig(codec.sig_to_toks(sig[1:, :4001]), num_samples=4001)
    assert torch.equal(decoded[1:, :4001], alone) and not decoded[1, 4001:].any()


def test_a_codec_stays_in_evaluation_mode(codec):
    sig = noise(1, NUM_SAMPLES)
    before = codec.sig_to_toks(sig)
    codec.train()
    assert not any(module.training for module in codec.modules())
    assert torch.equal(codec.sig_to_toks(sig), before)
    assert not any(weight.requires_grad for weight in codec.parameters())


def test_length_follows_the_output_rate():
    assert Pcm(upsample=2).num_samples_output(1001) == 2002
    assert Pcm(upsample=2).resynthesize(noise(1, 1001)).sig.shape == (1, 2002)


# What the packages do themselves


def test_encodec_equals_transformers(tmp_path):
    model = write_encodec(tmp_path)
    sig = noise(1, NUM_SAMPLES)
    for num_codebooks, bandwidth in ((2, 1.5), (4, 3.0)):
        codec = EnCodec(checkpoint=tmp_path, num_codebooks=num_codebooks)
        with torch.no_grad():
            codes = model.encode(sig[:, None], bandwidth=bandwidth).audio_codes
            decoded = model.decode(codes, [None]).audio_values
        toks = codec.sig_to_toks(sig)
        assert codes.shape == (1, 1, num_codebooks, toks.shape[1])
        assert torch.equal(toks, codes[0].permute(0, 2, 1))
        assert torch.equal(codec.toks_to_sig(toks), decoded[:, 0])


def test_dac_equals_transformers_on_whole_frames(tmp_path):
    model, sig = write_dac(tmp_path), noise(1, 6400)
    for num_codebooks in (1, 2, 4):
        codec = DAC(checkpoint=tmp_path, num_codebooks=num_codebooks)
        with torch.no_grad():
            encoded = model.encode(sig[:, None], n_quantizers=num_codebooks)
            decoded = model.decode(encoded.quantized_representation).audio_values
        toks = codec.sig_to_toks(sig)
        assert torch.equal(toks, encoded.audio_codes.permute(0, 2, 1))
        torch.testing.assert_close(codec.toks_to_sig(toks), decoded, rtol=0, atol=1e-5)  # sums


def test_mimi_equals_transformers_and_puts_the_semantic_codebook_first(tmp_path):
    model, sig = write_mimi(tmp_path), noise(1, NUM_SAMPLES)
    for num_codebooks in (1, 5, 6):
        codec = Mimi(checkpoint=tmp_path, num_codebooks=num_codebooks)
        with torch.no_grad():
            codes = model.encode(sig[:, None], num_quantizers=num_codebooks).audio_codes
            lats = model.encoder(sig[:, None]).latents
            semantic = model.quantizer.semantic_residual_vector_quantizer.encode(lats)
            decoded = model.decode(codes).audio_values
        toks = codec.sig_to_toks(sig)
        assert torch.equal(toks, codes.permute(0, 2, 1))
        assert torch.equal(toks[..., 0], semantic[0])
        assert torch.equal(codec.toks_to_sig(toks), decoded[:, 0])


def test_focalcodec_equals_the_codec_and_prints_its_rate(tmp_path, make_codec):
    model = make_codec()
    model.save_pretrained(tmp_path / "mine")
    codec, sig = FocalCodec(checkpoint=tmp_path / "mine"), noise(1, NUM_SAMPLES)
    assert (codec.name, codec.model_id) == ("FocalCodec@50", "mine")
    toks = model.sig_to_toks(sig)
    assert torch.equal(codec.sig_to_toks(sig), toks[..., None])
    assert torch.equal(codec.toks_to_sig(toks[..., None]), model.toks_to_sig(toks))
    assert torch.equal(codec.sig_to_feats(sig), model.sig_to_feats(sig))
    assert torch.equal(codec.toks_to_qfeats(toks[..., None]), model.toks_to_qfeats(toks))
    feats = model.sig_to_feats(sig)
    assert torch.equal(codec.feats_to_sig(feats), model.feats_to_sig(feats))


def test_focalcodec_rate_of_downsampled_tokens_is_in_its_name(tmp_path, make_codec):
    make_codec(factors=(2, 2, 1)).save_pretrained(tmp_path)
    assert FocalCodec(checkpoint=tmp_path).name == "FocalCodec@12.5"
    assert FocalCodec(checkpoint=tmp_path, name="mine").name == "mine"


# Embeddings: row i is what token i decodes to


def test_embeddings_have_a_row_for_every_token(codec):
    embeddings = codec.embeddings()
    assert embeddings.shape[:2] == (codec.num_codebooks, codec.codebook_size)
    assert len(embeddings[0].unique(dim=0)) == codec.codebook_size


def _rows(codec: Codec, toks: torch.Tensor) -> list[torch.Tensor]:
    """Embeddings (1, L, H) of the tokens of every codebook."""
    return [book[toks[..., k]] for k, book in enumerate(codec.embeddings())]


def test_encodec_decodes_the_sum_of_embeddings(tmp_path, make_codec):
    codec = encodec(tmp_path, make_codec)
    toks = codec.sig_to_toks(noise(1, NUM_SAMPLES))
    decoded = codec.model.decoder(sum(_rows(codec, toks)).transpose(1, 2))[:, 0]
    torch.testing.assert_close(decoded, codec.toks_to_sig(toks), rtol=0, atol=1e-6)


def test_dac_decodes_the_sum_of_projected_embeddings(tmp_path, make_codec):
    codec = dac(tmp_path, make_codec)
    toks = codec.sig_to_toks(noise(1, NUM_SAMPLES))
    projected = [
        book.out_proj(rows.transpose(1, 2))
        for book, rows in zip(codec.model.quantizer.quantizers, _rows(codec, toks), strict=False)
    ]
    decoded = codec.model.decoder(sum(projected))[:, 0]
    torch.testing.assert_close(decoded, codec.toks_to_sig(toks), rtol=0, atol=1e-6)


def test_mimi_decodes_the_sum_of_projected_embeddings(tmp_path, make_codec):
    codec = mimi(tmp_path, make_codec)
    toks = codec.sig_to_toks(noise(1, NUM_SAMPLES))
    semantic, *acoustic = (rows.transpose(1, 2) for rows in _rows(codec, toks))
    quantizer = codec.model.quantizer
    lats = quantizer.semantic_residual_vector_quantizer.output_proj(semantic)
    lats = lats + quantizer.acoustic_residual_vector_quantizer.output_proj(sum(acoustic))
    torch.testing.assert_close(
        lats, quantizer.decode(toks.transpose(1, 2)), rtol=0, atol=1e-6
    )  # order of sums


def test_focalcodec_embeddings_are_its_codes(tmp_path, make_codec):
    codec = focalcodec(tmp_path, make_codec)
    toks = codec.sig_to_toks(noise(1, NUM_SAMPLES))
    assert torch.equal(_rows(codec, toks)[0], codec.model.toks_to_codes(toks[..., 0]))


# What is refused


@pytest.mark.parametrize(
    ("toks", "message"),
    [
        (torch.zeros(1, 5, dtype=torch.long), r"must be \(B, L, 320\) with L >= 1, got \(1, 5\)"),
        (torch.zeros(1, 5, 3, dtype=torch.long), r"got \(1, 5, 3\)"),
        (torch.zeros(1, 0, 320, dtype=torch.long), "L >= 1"),
        (torch.zeros(1, 5, 320), "must be int64"),
        (torch.full((1, 5, 320), 2**16), r"must be in \[0, 65536\), got 65536 to 65536"),
        (torch.full((1, 5, 320), -1), "got -1 to -1"),
    ],
    ids=["no codebooks", "codebooks", "empty", "type", "too high", "too low"],
)
def test_tokens_that_do_not_fit_are_refused(toks, message):
    with pytest.raises(ValueError, match=message):
        Pcm(block=320).toks_to_sig(toks)


@pytest.mark.parametrize(
    ("sig", "lens", "message"),
    [
        (torch.zeros(5), None, r"add a batch axis"),
        (torch.zeros(1, 0), None, "at least one sample"),
        (torch.full((1, 5), torch.nan), None, "not finite"),
        (torch.zeros(2, 5), torch.ones(1), r"lens must be \(2,\)"),
        (torch.zeros(1, 5), torch.tensor([5.0]), "fractions of the padded length"),
    ],
    ids=["axis", "empty", "nan", "number of lens", "absolute lens"],
)
def test_signals_that_do_not_fit_are_refused(sig, lens, message):
    with pytest.raises(ValueError, match=message):
        Pcm().sig_to_toks(sig, lens=lens)


def test_a_codec_without_features_says_so():
    for call in (
        lambda codec: codec.sig_to_feats(noise(1, 5)),
        lambda codec: codec.toks_to_qfeats(torch.zeros(1, 5, 1, dtype=torch.long)),
        lambda codec: codec.feats_to_sig(noise(1, 5, 3)),
    ):
        with pytest.raises(ValueError, match="PCM gives no features in front of its decoder"):
            call(Pcm())


@pytest.mark.parametrize(
    ("maker", "codec", "num_codebooks", "choices"),
    [
        (write_encodec, EnCodec, 3, "takes 2, 4"),
        (write_dac, DAC, 5, "takes 1, 2, 3, 4"),
        (write_mimi, Mimi, 7, "takes 1, 2, 3, 4, 5, 6"),
        (write_mimi, Mimi, 0, "takes 1, 2"),
    ],
    ids=["encodec", "dac", "mimi", "mimi without semantic"],
)
def test_codebooks_that_a_checkpoint_lacks_are_refused(
    maker, codec, num_codebooks, choices, tmp_path
):
    maker(tmp_path)
    with pytest.raises(ValueError, match=f"num_codebooks is {num_codebooks} but .* {choices}"):
        codec(checkpoint=tmp_path, num_codebooks=num_codebooks)


@pytest.mark.parametrize(
    "changes", [{"normalize": True}, {"audio_channels": 2}, {"chunk_length_s": 1.0}], ids=str
)
def test_encodec_with_scales_channels_or_chunks_is_refused(changes, tmp_path):
    write_encodec(tmp_path, **changes)
    with pytest.raises(ValueError, match="stereo, scales its input or cuts it into chunks"):
        EnCodec(checkpoint=tmp_path, num_codebooks=2)


@pytest.mark.parametrize("path", BLOCKS, ids=lambda path: path.stem)
def test_blocks_are_factories_that_do_no_io(path):
    factory = load_hyperpyyaml(f"codec: !include:{path}\n")["codec"]
    assert issubclass(factory.func, Codec)
    # As evaluation calls it.
    inspect.signature(factory.func).bind(**factory.keywords | {"checkpoint": "here"})
    if path.stem != "focalcodec":
        inspect.signature(factory.func).bind(**factory.keywords)


def test_every_codec_of_the_paper_has_a_block():
    names = [load_hyperpyyaml(f"codec: !include:{path}\n")["codec"].keywords for path in BLOCKS]
    assert {block["name"] for block in names} == {
        *("EnCodec", "DAC", "SpeechTokenizer", "SemantiCodec", "Mimi", "WavTokenizer", "BigCodec"),
        *("Stable Codec", "FocalCodec@50", "FocalCodec@25", "FocalCodec@12.5", "WavLM6-KM", None),
    }


def test_block_of_a_folder_takes_its_checkpoint_where_it_is_used(root, tmp_path, make_codec):
    block = root / "recipes/hparams/codec/focalcodec.yaml"
    factory = load_hyperpyyaml(f"codec: !include:{block}\n")["codec"]
    with pytest.raises(ValueError, match="names no weights; pass checkpoint"):
        factory()
    make_codec().save_pretrained(tmp_path)
    assert factory(checkpoint=str(tmp_path)).name == "FocalCodec@50"
