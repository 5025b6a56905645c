"""Published checkpoints: both layouts give their tokens, and what is saved is the newer one."""

import filecmp
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from focalcodec import FocalCodec, hub
from focalcodec.hub.config import build_parts, constructor_arguments, fingerprint
from focalcodec.hub.legacy import (
    V001,
    V002,
    layout_of_config,
    layout_of_weights,
    rename_codec_weights,
)
from focalcodec.wavenext import WaveNeXt
from focalcodec.wavlm import WavLM

NEW_CASES = ["noncausal_50hz", "noncausal_25hz", "noncausal_12_5hz"]
OLD_CASE = "legacy_v001_25hz"
GOLDEN_CASES = pytest.mark.parametrize("case", [*NEW_CASES, OLD_CASE])
NEW_GOLDEN_CASES = pytest.mark.parametrize("case", NEW_CASES)
# Of the peak; measured float32 noise of the references is below 3e-6 stage by stage and below 4e-6
# end to end.
STAGE_TOLERANCE = 5e-6
GOLDEN_TOLERANCE = 1e-5

QKV = ("q_proj", "k_proj", "v_proj")
Q_WEIGHT, K_WEIGHT = (f"encoder.encoder.layers.1.attention.{name}.weight" for name in QKV[:2])


def assert_near(got, expected, *, tolerance=GOLDEN_TOLERANCE):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def assert_equal(state, expected):
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def as_v001(state):
    """Weights of a whole codec as v0.0.1 named them, written from its list of keys."""
    old = {}
    layers = {"downscale": 0, "focal_block": 1}, {"focal_block": 0, "upscale": 1}
    for key, value in state.items():
        if "qkv_proj" in key:
            for name, rows in zip(QKV, value.chunk(3), strict=True):
                old[key.replace("qkv_proj", name)] = rows.clone()
        elif match := re.match(r"((?:de)?compressor)\.layers\.(\d)\.(\w+)\.(.*)", key):
            part, i, name, rest = match.groups()
            old[f"{part}.layers.{i}.{layers[part == 'decompressor'][name]}.{rest}"] = value
        else:
            old[key] = value
    dim = state["encoder.feature_proj.weight"].shape[0]
    old["encoder.encoder.norm.weight"] = old["encoder.encoder.norm.bias"] = torch.ones(dim)
    old["quantizer.mask"] = torch.tensor([32, 16, 8, 4, 2, 1])
    return {key: value.clone() for key, value in old.items()}


@pytest.fixture
def new_folder(make_codec, tmp_path):
    codec = make_codec(encoder="wavlm", factors=(2, 1, 1))
    codec.save_pretrained(tmp_path / "new")
    return tmp_path / "new"


@pytest.fixture
def old_folder(new_folder, tmp_path):
    """Folder of the codec of ``new_folder`` as v0.0.1 would have written it."""
    shutil.copytree(new_folder, tmp_path / "old")
    config = json.loads((new_folder / "config.json").read_text())
    for part in ("encoder", "compressor", "decompressor", "decoder"):
        del config[f"{part}_config"]["causal"]
    config["decoder_config"]["input_channels"] = config["decoder_config"].pop("input_dim")
    config["decoder_config"]["padding"] = 3
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    state = as_v001(load_file(new_folder / "model.safetensors"))
    save_file(state, tmp_path / "old" / "model.safetensors")
    return tmp_path / "old"


def edit_weights(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


def weights_of(folder):
    return nn.ModuleDict(hub.load_parts(folder)).state_dict()


# Golden codecs


@GOLDEN_CASES
def test_published_checkpoints_give_their_tokens(shared, case):
    golden = load_file(shared / "golden" / case / "io.safetensors")
    codec = FocalCodec.from_pretrained(shared / "golden" / case)
    names = {key.partition("/")[0] for key in golden if key.endswith("/rec_sig")}
    for name in sorted(names - {"batch"}):
        sig = golden[f"{name}/sig"]
        toks, codes, rec_sig = codec(sig, exact_tail=False)
        assert torch.equal(toks, golden[f"{name}/toks"])
        assert_near(rec_sig, golden[f"{name}/rec_sig"])
        for y in ("feats", "lats", "codes", "qfeats"):
            if f"{name}/{y}" in golden:
                got = getattr(codec, f"sig_to_{y}")(sig, exact_tail=False)
                assert_near(got, golden[f"{name}/{y}"])


@GOLDEN_CASES
def test_published_checkpoints_stage_by_stage(shared, case):
    golden = load_file(shared / "golden" / case / "io.safetensors")
    codec = FocalCodec.from_pretrained(shared / "golden" / case)
    sig, feats, lats, toks, codes, qfeats, rec_sig = (
        golden[f"single/{name}"]
        for name in ("sig", "feats", "lats", "toks", "codes", "qfeats", "rec_sig")
    )
    assert_near(codec.sig_to_feats(sig, exact_tail=False), feats, tolerance=STAGE_TOLERANCE)
    assert_near(codec.feats_to_lats(feats), lats, tolerance=STAGE_TOLERANCE)
    assert torch.equal(codec.lats_to_toks(lats), toks)
    assert torch.equal(codec.lats_to_codes(lats), codes)
    assert torch.equal(codec.toks_to_codes(toks), codes)
    assert_near(codec.codes_to_qfeats(codes), qfeats, tolerance=STAGE_TOLERANCE)
    decoded = codec.feats_to_sig(qfeats)
    size = min(decoded.shape[1], rec_sig.shape[1])  # the golden one is cut or extended to the input
    assert_near(decoded[:, :size], rec_sig[:, :size], tolerance=STAGE_TOLERANCE)


@NEW_GOLDEN_CASES
def test_published_checkpoints_in_batches(shared, case):
    golden = load_file(shared / "golden" / case / "io.safetensors")
    codec = FocalCodec.from_pretrained(shared / "golden" / case)
    sig, lens = golden["batch/sig"], golden["batch/length"]
    no_lens = codec.sig_to_toks(sig, exact_tail=False)
    assert torch.equal(no_lens, golden["batch/toks_no_length"])
    # The published batch changes the shorter item's tokens; ours are those of the item alone.
    alone = golden["batch/toks_item1_alone"]
    toks = codec.sig_to_toks(sig, lens=lens, exact_tail=False)
    assert torch.equal(toks[1:, : alone.shape[1]], alone)
    assert torch.equal(toks[0], golden["batch/toks"][0])


@NEW_GOLDEN_CASES
def test_published_checkpoints_are_saved_as_they_were(shared, case, tmp_path):
    published = shared / "golden" / case
    FocalCodec.from_pretrained(published).save_pretrained(tmp_path)
    ours = json.loads((tmp_path / "config.json").read_text())
    for key, theirs in json.loads((published / "config.json").read_text()).items():
        if isinstance(theirs, dict):
            assert ours[key].items() <= theirs.items()
        else:
            assert ours[key] == theirs
    assert_equal(*(load_file(path / "model.safetensors") for path in (tmp_path, published)))


def test_the_golden_checkpoint_of_v001_is_saved_in_the_words_of_v002(shared, tmp_path):
    golden = shared / "golden"
    codec = FocalCodec.from_pretrained(golden / OLD_CASE)
    codec.save_pretrained(tmp_path)
    ours = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((golden / "noncausal_25hz" / "config.json").read_text())
    assert ours.keys() == theirs.keys()
    for key, words in theirs.items():
        if isinstance(words, dict):
            assert ours[key].keys() <= words.keys()  # all that the constructors of v0.0.2 take
    assert layout_of_weights(load_file(tmp_path / "model.safetensors")) == V002
    again = FocalCodec.from_pretrained(tmp_path)
    io = load_file(golden / OLD_CASE / "io.safetensors")
    assert torch.equal(again.sig_to_toks(io["single/sig"], exact_tail=False), io["single/toks"])


def test_encoder_weights_of_golden_transformers_folder(shared):
    golden = shared / "golden" / "hf_wavlm"
    config = json.loads((golden / "encoder_config.json").read_text())
    encoder = WavLM(**config["encoder_config"]).eval()
    io = load_file(golden / "io.safetensors")
    for source in (golden / "hf", golden / "encoder.safetensors"):
        hub.load_encoder_weights(encoder, source)
        with torch.no_grad():
            assert_near(encoder(io["single/sig"]), io["single/feats"])


def test_every_key_of_the_full_size_checkpoints_has_its_place(shared):
    old, new = (_shapes(shared, f"keys_50hz_{name}_layout.txt") for name in ("v001", "v002"))
    renamed = rename_codec_weights(old, where="keys")
    # A configuration without a word: all defaults are those of the version that wrote the weights.
    for state in (renamed, new):
        parts = build_parts({}, where="config", layout=layout_of_weights(old), sketch=True)
        own = nn.ModuleDict(parts).state_dict()
        assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}
    assert layout_of_weights(new) == V002 and sum(v.numel() for v in new.values()) == 142_126_257


def _shapes(shared, name):
    """Tensors without memory of the keys and shapes in a file."""
    text = (shared / "golden" / "keys" / name).read_text()
    rows = [line.split("\t") for line in text.splitlines()]
    return {key: torch.empty(json.loads(shape), device="meta") for key, shape, _ in rows}


FINGERPRINTS = {  # in the headers of token files that were written by them
    "noncausal_50hz": "66e397c5df8f5c918991722733fb79eb",
    "noncausal_25hz": "c6967fdbcc300f77203b05a49e70c65f",
    "noncausal_12_5hz": "2398ab6bc32da53a84075c69339c204b",
    OLD_CASE: "cc41343b0caed5deac8f701d50e9fb26",
}


@pytest.mark.parametrize("case", FINGERPRINTS)
def test_fingerprints_of_codecs_with_full_context_never_change(shared, case):
    """Taken before there were causal codecs, with every weight 0.5."""
    config = json.loads((shared / "golden" / case / "config.json").read_text())
    parts = build_parts(config, where=case)
    for weights in nn.ModuleDict(parts).parameters():
        nn.init.constant_(weights, 0.5)
    assert fingerprint(parts) == FINGERPRINTS[case]


# The layout of v0.0.1


def test_both_layouts_load_alike(new_folder, old_folder):
    assert_equal(weights_of(old_folder), weights_of(new_folder))
    old, new = (hub.load_parts(folder) for folder in (old_folder, new_folder))
    assert fingerprint(old) == fingerprint(new)
    torch.save(load_file(old_folder / "model.safetensors"), old_folder / "model.pt")
    (old_folder / "model.safetensors").unlink()
    assert_equal(weights_of(old_folder), weights_of(new_folder))


def test_what_was_old_is_saved_new(new_folder, old_folder, tmp_path):
    FocalCodec.from_pretrained(old_folder).save_pretrained(tmp_path / "saved")
    FocalCodec.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    names = ["config.json", "model.safetensors"]
    for folder in (new_folder, tmp_path / "again"):
        assert filecmp.cmpfiles(tmp_path / "saved", folder, names, shallow=False)[0] == names


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop(K_WEIGHT), f"has {Q_WEIGHT} but lacks {K_WEIGHT}"),
        (lambda s: s.pop(Q_WEIGHT), f"has {K_WEIGHT} but lacks {Q_WEIGHT}"),
        (
            lambda s: s.update({K_WEIGHT: torch.ones(16, 15)}),
            r"must be alike, got \(16, 16\) of torch.float32, \(16, 15\) of torch.float32",
        ),
        (lambda s: s.update({K_WEIGHT: s[K_WEIGHT].half()}), "alike.* of torch.float16"),
        (
            lambda s: s.update({Q_WEIGHT.replace("q_proj", "qkv_proj"): torch.ones(48, 16)}),
            r"has encoder.*\.qkv_proj\.weight under its name of v0\.0\.1 too",
        ),
        (
            lambda s: s.update({"compressor.layers.0.downscale.downscale.bias": torch.ones(12)}),
            r"has compressor\.layers\.0\.downscale\.downscale\.bias under its name of v0\.0\.1 too",
        ),
        (
            lambda s: s.update({"encoder.encoder.norm.gain": torch.ones(16)}),
            "1 weights with no place, the first is 'encoder.encoder.norm.gain'",
        ),
        (
            lambda s: s.update({"quantizer.codebook": torch.ones(64, 6)}),
            "1 weights with no place, the first is 'quantizer.codebook'",
        ),
        (lambda s: s.pop("encoder.norm.weight"), "lacks 1 of .* the first is encoder.norm.weight"),
    ],
    ids=["no k", "no q", "shape", "type", "both", "both layers", "norm", "quantizer", "kept norm"],
)
def test_weights_of_v001_that_do_not_fit_are_refused(old_folder, edit, message):
    edit_weights(old_folder, edit)
    with pytest.raises(ValueError, match=rf"model\.safetensors does not fit: .*{message}") as error:
        hub.load_parts(old_folder)
    assert "\n" not in str(error.value)


def test_only_v001_has_weights_that_nothing_uses(new_folder):
    edit_weights(new_folder, lambda state: state.update({"quantizer.mask": torch.ones(6)}))
    with pytest.raises(ValueError, match=r"with no place, the first is 'quantizer\.mask'"):
        hub.load_parts(new_folder)


@pytest.mark.parametrize("form", ["folder", "file", "encoder", "json"])
def test_an_encoder_takes_its_weights_of_v001(new_folder, old_folder, tmp_path, form):
    expected = {
        key.removeprefix("encoder."): value
        for key, value in weights_of(new_folder).items()
        if key.startswith("encoder.")
    }
    old = load_file(old_folder / "model.safetensors")
    alone = {k.removeprefix("encoder."): v for k, v in old.items() if k.startswith("encoder.")}
    save_file(alone, tmp_path / "wavlm.safetensors")
    source = {
        "folder": old_folder,
        "file": old_folder / "model.safetensors",
        "encoder": tmp_path / "wavlm.safetensors",
        "json": old_folder / "config.json",
    }[form]
    arguments = constructor_arguments(hub.load_parts(new_folder)["encoder"])
    encoder = WavLM(**arguments)
    hub.load_encoder_weights(encoder, source)
    assert_equal(encoder.state_dict(), expected)
    first = WavLM(**arguments | {"num_layers": 1})
    hub.load_encoder_weights(first, source)
    kept = {k: v for k, v in expected.items() if not k.startswith("encoder.layers.1.")}
    assert_equal(first.state_dict(), kept)


# What configurations leave out


def edit_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_the_words_of_a_configuration_tell_its_version():
    assert layout_of_config({"decoder_config": {"input_channels": 8}}) == V001
    assert layout_of_config({"encoder_config": {"max_cached_steps": 0}}) == V002
    assert layout_of_config({"encoder_config": {"dim": 16}, "decoder_name": "Vocos"}) is None
    both = {"encoder_config": {"causal": False}, "decoder_config": {"padding": 3}}
    assert layout_of_config(both) is None


def test_input_channels_is_the_old_name_of_input_dim(new_folder):
    expected = weights_of(new_folder)
    edit_config(new_folder, lambda c: c["decoder_config"].update(input_channels=16, input_dim=99))
    assert_equal(weights_of(new_folder), expected)
    edit_config(new_folder, lambda c: c["decoder_config"].update(input_channels=None, input_dim=16))
    assert_equal(weights_of(new_folder), expected)


def test_what_v001_leaves_out_has_the_defaults_of_v001(old_folder, new_folder):
    def leave_out(config):
        for part in ("compressor", "decompressor"):
            for word in ("focal_window", "focal_level", "focal_factor", "use_post_norm"):
                del config[f"{part}_config"][word]
        for part in ("encoder", "compressor", "quantizer", "decompressor", "decoder"):
            del config[f"{part}_name"]

    expected = weights_of(new_folder)
    edit_config(old_folder, leave_out)
    assert_equal(weights_of(old_folder), expected)
    # Without weights, and without a word of either version, nobody can know.
    hub.load_parts(old_folder, pretrained=False)
    edit_config(old_folder, lambda c: c["decoder_config"].pop("padding"))
    edit_config(old_folder, lambda c: c["decoder_config"].pop("input_channels"))
    message = "lacks the key 'focal_factor', whose default is not the same in v0.0.1 and v0.0.2"
    with pytest.raises(ValueError, match=message):
        hub.load_parts(old_folder, pretrained=False)


def test_what_v002_leaves_out_has_the_defaults_of_v002():
    parts = build_parts({"encoder_config": {"causal": False}}, where="config", sketch=True)
    compressor, decompressor = parts["compressor"], parts["decompressor"]
    assert compressor.hidden_dims == decompressor.hidden_dims == (1024, 1024, 1024)
    assert compressor.output_dim == decompressor.input_dim == parts["quantizer"].code_dim == 12
    kernels = [
        layer[0].kernel_size for layer in compressor.layers[0]["focal_block"].modulation.layers
    ]
    assert kernels == [(14,), (18,)]
    assert isinstance(parts["decoder"], WaveNeXt) and parts["decoder"].sample_rate == 24000
    assert not any(getattr(part, "causal", False) for part in parts.values())
