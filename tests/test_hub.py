"""Checkpoints: round trips, published layouts, strictness, and encoder weights from elsewhere."""

import filecmp
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import WavLMConfig, WavLMModel

from focalcodec import FocalCodec, hub
from focalcodec.config import constructor_arguments
from focalcodec.wavlm import WavLM

GOLDEN_CASES = pytest.mark.parametrize(
    "case", ["noncausal_50hz", "noncausal_25hz", "noncausal_12_5hz"]
)
# Of the peak, end to end; measured float32 noise of the references is below 4e-6.
GOLDEN_TOLERANCE = 1e-5


def assert_near(got, expected):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= GOLDEN_TOLERANCE * expected.abs().max()


@pytest.fixture
def folder(make_codec, tmp_path):
    """Folder of a saved tiny codec with a WavLM encoder."""
    make_codec(encoder="wavlm", factors=(2, 1, 1)).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def edit_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


# Whole codecs


@pytest.mark.parametrize("encoder", ["logmel", "wavlm"])
@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 2, 1)], ids=["50hz", "12_5hz"])
def test_a_saved_codec_gives_the_same_tokens_and_signal(make_codec, tmp_path, encoder, factors):
    codec = make_codec(encoder=encoder, factors=factors)
    codec.save_pretrained(tmp_path / "new" / "folder")
    loaded = FocalCodec.from_pretrained(tmp_path / "new" / "folder")
    sig = 0.1 * torch.randn(2, 7001)
    got, expected = loaded(sig), codec(sig)
    assert torch.equal(got.toks, expected.toks)
    assert torch.equal(got.codes, expected.codes)
    # Kernels differ in the last bit with the alignment of the weights and with recording.
    torch.testing.assert_close(got.rec_sig, expected.rec_sig, atol=1e-6, rtol=1e-5)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_save_load_save_gives_the_same_bytes(folder, tmp_path):
    FocalCodec.from_pretrained(folder).save_pretrained(tmp_path / "again")
    names = ["config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names  # no partial files are left
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert filecmp.cmpfiles(folder, tmp_path / "again", names, shallow=False)[0] == names


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
    assert torch.equal(codec.toks_to_codes(golden["single/toks"]), golden["single/codes"])


@GOLDEN_CASES
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


@GOLDEN_CASES
def test_published_checkpoints_are_saved_as_they_were(shared, case, tmp_path):
    published = shared / "golden" / case
    FocalCodec.from_pretrained(published).save_pretrained(tmp_path)
    ours = json.loads((tmp_path / "config.json").read_text())
    for key, theirs in json.loads((published / "config.json").read_text()).items():
        if isinstance(theirs, dict):
            assert ours[key].items() <= theirs.items()
        else:
            assert ours[key] == theirs
    theirs, ours = (load_file(path / "model.safetensors") for path in (published, tmp_path))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


# Where codecs are found


def test_a_json_file_with_weights_beside_it_loads(folder, tmp_path):
    expected = FocalCodec.from_pretrained(folder).state_dict()
    (folder / "config.json").rename(tmp_path / "small.json")
    (folder / "model.safetensors").rename(tmp_path / "small.safetensors")
    for source in (tmp_path / "small.json", str(tmp_path / "small")):
        loaded = FocalCodec.from_pretrained(source).state_dict()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_config_json_of_a_snapshot_loads(folder):
    FocalCodec.from_pretrained(folder / "config.json")


def test_a_hub_id_in_the_cache_needs_no_network(folder, tmp_path, monkeypatch):
    repo = tmp_path / "cache" / "models--someone--codec"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repo / "snapshots" / ("0" * 40))

    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    codec = FocalCodec.from_pretrained("someone/codec", cache_dir=tmp_path / "cache")
    assert codec.token_rate == 25.0
    encoder = WavLM(**constructor_arguments(codec.encoder))
    hub.load_encoder_weights(encoder, "someone/codec", cache_dir=tmp_path / "cache")
    assert not asked


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/codec", "/nowhere/codec does not exist"),
        ("./codec", "./codec does not exist"),
        ("codec", "codec does not exist, and it is not a hub id of the form owner/name"),
        ("results/.../codec", "results/.../codec does not exist"),
        ("results/a--b", "results/a--b is not a folder here and no hub id"),
        ("someone/absent", "someone/absent is not a folder here, and the hub gives no config.json"),
    ],
)
def test_a_missing_source_is_named(source, message, offline, tmp_path):
    with pytest.raises(FileNotFoundError, match=message) as error:
        FocalCodec.from_pretrained(source, cache_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"codec holds no {name}"):
        FocalCodec.from_pretrained(folder)


# Strictness


def test_a_wrong_configuration_is_named_by_its_file(folder):
    edit_config(folder, lambda config: config.update(extra=1))
    with pytest.raises(ValueError, match=r"codec/config\.json has the unknown key 'extra'"):
        FocalCodec.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_configuration_that_is_no_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json (is not JSON|holds a list)"):
        FocalCodec.from_pretrained(folder)


KEY = "compressor.out_proj.bias"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop(KEY), f"lacks 1 of [0-9]+ weights, the first is {KEY}"),
        (
            lambda s: s.update(extra=s[KEY].clone()),
            "has 1 weights with no place, the first is extra",
        ),
        (
            lambda s: s.update({KEY: torch.ones(7)}),
            rf"has {KEY} of shape \(7,\), .* asks for \(6,\)",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_are_refused(folder, edit, message):
    edit_weights(folder, edit)
    with pytest.raises(ValueError, match=message) as error:
        FocalCodec.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.ones(2, 3)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(3)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(2), "gain": torch.ones(2)},
        {"weight": torch.ones(2, 3), "bias": 1.0},
        [torch.ones(2, 3), torch.ones(2)],
    ],
    ids=["missing", "shape", "left over", "number", "list"],
)
def test_a_module_that_refuses_weights_keeps_its_own(state):
    module = nn.Linear(3, 2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"^there/some\.pt does not fit: it "):
        hub.load_strict(module, state, where="there/some.pt")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_damaged_weights_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for broken in (b"", whole[:5], whole[:-1], b"\xff" * 100):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged") as error:
            FocalCodec.from_pretrained(folder)
        assert "\n" not in str(error.value)


def test_pickles_are_read_as_tensors_alone(folder, tmp_path):
    path = folder / "model.pt"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    FocalCodec.from_pretrained(folder)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_here"), "w"))

    path.write_bytes(pickle.dumps({KEY: Evil()}, protocol=2))
    with pytest.raises(ValueError, match=r"model\.pt is damaged or not a file of weights"):
        FocalCodec.from_pretrained(folder)
    assert not (tmp_path / "was_here").exists()
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"model\.pt is not a state dict of tensors"):
        FocalCodec.from_pretrained(folder)


def test_a_failed_save_leaves_the_old_codec(make_codec, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        make_codec().save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Encoder weights


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory):
    """Folder of a tiny WavLM of transformers with 4 layers."""
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        num_buckets=32,
        max_bucket_distance=80,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        apply_spec_augment=False,
    )
    folder = tmp_path_factory.mktemp("wavlm")
    WavLMModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(make_codec):
    """Return an encoder of 2 layers that fits ``wavlm_folder`` and ``folder``."""
    return make_codec(encoder="wavlm").encoder


def hidden_states(folder, sig):
    model = WavLMModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(sig, output_hidden_states=True).hidden_states[2]


@pytest.mark.parametrize("form", ["folder", "shards", "pickle", "file", "prefix"])
def test_encoder_takes_its_layers_of_a_transformers_model(wavlm_folder, encoder, tmp_path, form):
    source = tmp_path / "source"
    shutil.copytree(wavlm_folder, source)
    state = load_file(source / "model.safetensors")
    if form == "shards":
        (source / "model.safetensors").unlink()
        WavLMModel.from_pretrained(wavlm_folder).save_pretrained(source, max_shard_size="20KB")
        assert not (source / "model.safetensors").exists()
    elif form == "pickle":
        (source / "model.safetensors").unlink()
        torch.save(state, source / "pytorch_model.bin")
    elif form == "file":
        source = source / "model.safetensors"
    elif form == "prefix":
        save_file({f"wavlm.{k}": v for k, v in state.items()}, source / "model.safetensors")
    hub.load_encoder_weights(encoder, source)
    sig = torch.randn(1, 4000)
    with torch.no_grad():
        feats = encoder(sig)
    torch.testing.assert_close(feats, hidden_states(wavlm_folder, sig), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["folder", "json", "file", "encoder", "encoder.pt"])
def test_encoder_takes_its_layers_of_a_codec(folder, encoder, tmp_path, form):
    expected = FocalCodec.from_pretrained(folder).encoder.state_dict()
    deeper = expected | {
        k.replace("layers.1.", "layers.2."): v
        for k, v in expected.items()
        if k.startswith("encoder.layers.1.")
    }
    source = {
        "folder": folder,
        "json": folder / "config.json",
        "file": folder / "model.safetensors",
        "encoder": tmp_path / "wavlm.safetensors",
        "encoder.pt": tmp_path / "wavlm.pt",
    }[form]
    save_file({k: v.clone() for k, v in deeper.items()}, tmp_path / "wavlm.safetensors")
    torch.save(deeper, tmp_path / "wavlm.pt")
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    hub.load_encoder_weights(encoder, source)
    assert all(torch.equal(value, expected[key]) for key, value in encoder.state_dict().items())


def test_encoder_weights_of_golden_transformers_folder(shared):
    golden = shared / "golden" / "hf_wavlm"
    config = json.loads((golden / "encoder_config.json").read_text())
    encoder = WavLM(**config["encoder_config"]).eval()
    io = load_file(golden / "io.safetensors")
    for source in (golden / "hf", golden / "encoder.safetensors"):
        hub.load_encoder_weights(encoder, source)
        with torch.no_grad():
            assert_near(encoder(io["single/sig"]), io["single/feats"])


def test_another_encoder_is_refused(make_codec, folder, encoder, tmp_path):
    make_codec().save_pretrained(tmp_path / "logmel")
    with pytest.raises(ValueError, match="encoder of .* is a LogMel, not a WavLM"):
        hub.load_encoder_weights(encoder, tmp_path / "logmel")
    with pytest.raises(ValueError, match="LogMel has no weights to load"):
        hub.load_encoder_weights(make_codec().encoder, folder)
    arguments = constructor_arguments(encoder)
    with pytest.raises(ValueError, match=r"has 2 layers, but encoder\.num_layers is 3"):
        hub.load_encoder_weights(WavLM(**arguments | {"num_layers": 3}), folder)
    with pytest.raises(ValueError, match=r"max_distance 80, but encoder\.max_distance is 90"):
        hub.load_encoder_weights(WavLM(**arguments | {"max_distance": 90}), folder)
    with pytest.raises(ValueError, match="lacks [0-9]+ of [0-9]+ weights, the first is encoder.l"):
        hub.load_encoder_weights(
            WavLM(**arguments | {"num_layers": 3}), folder / "model.safetensors"
        )


def test_encoder_weights_that_are_missing_are_named(wavlm_folder, encoder, tmp_path):
    shutil.copytree(wavlm_folder, tmp_path / "source")
    key = "encoder.layers.1.attention.k_proj.weight"
    edit_weights(tmp_path / "source", lambda state: state.pop(key))
    with pytest.raises(ValueError, match=key):
        hub.load_encoder_weights(encoder, tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors or .*pytorch_model"):
        hub.load_encoder_weights(encoder, tmp_path / "source")


def test_shards_outside_the_folder_are_refused(wavlm_folder, encoder, tmp_path):
    shutil.copytree(wavlm_folder, tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"encoder.x": "../model.safetensors"}}
    (tmp_path / "source" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not a plain file name"):
        hub.load_encoder_weights(encoder, tmp_path / "source")
