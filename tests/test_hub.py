"""Codecs on disk and on the hub: round trips, where they are found, changed configurations."""

import filecmp
import inspect
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import hubconf
from focalcodec import FocalCodec, hub
from focalcodec.hub.config import constructor_arguments
from focalcodec.wavlm import WavLM


@pytest.fixture
def folder(make_codec, tmp_path):
    """Folder of a saved tiny codec with a WavLM encoder."""
    make_codec(encoder="wavlm", factors=(2, 1, 1)).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


KEY = "compressor.out_proj.bias"


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


# Where codecs are found


def assert_same_weights(codec, expected):
    assert codec.state_dict().keys() == expected.state_dict().keys()
    assert all(map(torch.equal, codec.state_dict().values(), expected.state_dict().values()))


@pytest.mark.parametrize("weights", ["small.safetensors", "small.pt"])
def test_a_json_file_with_weights_beside_it_loads(folder, tmp_path, weights):
    expected = FocalCodec.from_pretrained(folder)
    (folder / "config.json").rename(tmp_path / "small.json")
    if weights.endswith(".pt"):
        torch.save(load_file(folder / "model.safetensors"), tmp_path / weights)
    else:
        (folder / "model.safetensors").rename(tmp_path / weights)
    for source in (tmp_path / "small.json", str(tmp_path / "small")):
        assert_same_weights(FocalCodec.from_pretrained(source), expected)


@pytest.mark.parametrize("name", ["model.safetensors", "config.safetensors"])
def test_a_snapshot_loads_by_its_folder_and_by_its_configuration(folder, name):
    expected = FocalCodec.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder / name)
    for source in (folder, folder / "config.json", folder / "config"):
        assert_same_weights(FocalCodec.from_pretrained(source), expected)


def add_to_cache(folder, cache, *, commit, refs=()):
    """Put the files of a folder into a hub cache, as a commit of someone/codec."""
    repo = cache / "models--someone--codec"
    shutil.copytree(folder, repo / "snapshots" / (commit * 40))
    (repo / "refs").mkdir(exist_ok=True)
    for ref in refs:
        (repo / "refs" / ref).write_text(commit * 40)


@pytest.fixture
def cache(folder, tmp_path, monkeypatch):
    """Hub cache with two commits of someone/codec, 0 and 1; asking the network is an error."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(
            folder / name, folder / name.replace("config", "small").replace("model", "small")
        )
    add_to_cache(folder, tmp_path / "cache", commit="1", refs=["v1"])
    edit_weights(folder, lambda state: state.update({KEY: torch.zeros(6)}))
    add_to_cache(folder, tmp_path / "cache", commit="0", refs=["main"])
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    yield tmp_path / "cache"
    assert not asked


@pytest.mark.parametrize("revision", [None, "main", "0" * 40, "v1", "1" * 40])
@pytest.mark.parametrize("name", ["", "/config.json", "/config", "/small.json", "/small"])
def test_a_hub_id_in_the_cache_needs_no_network(folder, cache, name, revision):
    codec = FocalCodec.from_pretrained("someone/codec" + name, revision=revision, cache_dir=cache)
    assert codec.token_rate == 25.0
    edited = revision in (None, "main", "0" * 40) and "small" not in name
    assert bool((codec.compressor.out_proj.bias == 0).all()) == edited


def test_encoder_weights_in_the_cache_need_no_network(folder, cache):
    expected = FocalCodec.from_pretrained(folder).encoder
    for name in ("", "/small"):
        encoder = WavLM(**constructor_arguments(expected))
        hub.load_encoder_weights(encoder, "someone/codec" + name, cache_dir=cache)
        assert_same_weights(encoder, expected)


def test_weights_are_of_the_commit_of_the_configuration(folder, tmp_path, monkeypatch):
    (folder / "model.safetensors").unlink()
    add_to_cache(folder, tmp_path / "cache", commit="a", refs=["main"])
    asked = []

    def download(repo, name, *, revision, cache_dir):
        asked.append((repo, name, revision))
        raise OSError("no network in tests")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="gives no model.safetensors or .* no network"):
        FocalCodec.from_pretrained("someone/codec", cache_dir=tmp_path / "cache")
    assert asked == [("someone/codec", "model.safetensors", "a" * 40)]


def test_a_revision_of_what_is_here_is_refused(folder):
    for source in (folder, folder / "config.json"):
        with pytest.raises(ValueError, match="is a file or folder here and has no revision 'v1'"):
            FocalCodec.from_pretrained(source, revision="v1")
    encoder = FocalCodec.from_pretrained(folder).encoder
    with pytest.raises(ValueError, match="is a file or folder here and has no revision 'v1'"):
        hub.load_encoder_weights(encoder, folder / "model.safetensors", revision="v1")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/codec", "/nowhere/codec does not exist, and it is not a hub id"),
        ("./codec", "./codec does not exist"),
        ("codec", "codec does not exist, and it is not a hub id of the form owner/name"),
        ("results/codec.json", "results/codec.json does not exist, and it is not a hub id"),
        ("results/.../codec", "results/.../codec does not exist"),
        ("results/a/b/codec", "results/a/b/codec does not exist, and it is not a hub id"),
        ("results/a--b", "results/a--b does not exist here, and results/a--b is no hub id"),
        ("results/a--b/c", "results/a--b/c does not exist here, and results/a--b is no hub id"),
        (
            "someone/absent",
            "someone/absent does not exist here, and the hub gives no config.json of someone",
        ),
        (
            "runs/absent/codec",
            "runs/absent/codec does not exist here, and the hub gives no codec.json of runs/absent",
        ),
    ],
)
def test_a_missing_source_is_named(source, message, offline, tmp_path):
    for load in (FocalCodec.from_pretrained, FocalCodec.from_config):
        with pytest.raises(FileNotFoundError, match=message) as error:
            load(source, cache_dir=tmp_path)
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


@pytest.mark.parametrize(
    "text",
    [b"{", b"[]", b"3", b"", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1' + b"0" * 5000],
    ids=["cut", "list", "number", "empty", "no UTF-8", "deep", "deep object", "huge number"],
)
def test_a_configuration_that_is_no_object_is_refused(folder, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="config.json (is not JSON|holds a (list|int))") as error:
        FocalCodec.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_what_is_no_configuration_is_refused(folder):
    for load in (FocalCodec.from_pretrained, FocalCodec.from_config):
        with pytest.raises(ValueError, match=r"model\.safetensors is not a codec; give the folder"):
            load(folder / "model.safetensors")


# Random weights, and changed configurations


def test_random_weights_need_no_file_of_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not read")
    codecs = []
    for _ in range(2):
        torch.manual_seed(0)
        codecs.append(FocalCodec.from_config(folder))
    (folder / "model.safetensors").unlink()
    codecs.append(FocalCodec.from_config(folder))
    assert_same_weights(*codecs[:2])
    assert not torch.equal(
        codecs[2].compressor.out_proj.weight, codecs[0].compressor.out_proj.weight
    )
    assert codecs[0](torch.randn(1, 3000)).toks.shape == (1, 5)


def test_more_random_weights_than_a_codec_has_are_refused(folder):
    edit_config(folder, lambda c: c["encoder_config"].update(dim=2**16, ffn_dim=2**20))
    with pytest.raises(
        ValueError, match=r"config\.json asks for [0-9]+ weights, more than 42949672"
    ):
        FocalCodec.from_config(folder)
    with pytest.raises(ValueError, match="does not fit: it has .* but the configuration asks for"):
        FocalCodec.from_pretrained(folder)


def test_overrides_replace_what_the_configuration_says(folder):
    before = (folder / "config.json").read_bytes()
    overrides = {
        "encoder_config.max_cached_steps": 0,
        "encoder_config.dropout": 0.25,
        "decoder_config.n_fft": 640,
        "compressor_config.hidden_dims": (12, 10, 8),
    }
    parts = hub.load_parts(folder, overrides=overrides)
    assert parts["encoder"].dropout == 0.25
    expected = FocalCodec.from_pretrained(folder)
    assert_same_weights(FocalCodec(**parts), expected)
    smaller = FocalCodec.from_config(folder, overrides={"quantizer_config.codebook_size": 64})
    assert smaller.codebook_size == 64
    assert (folder / "config.json").read_bytes() == before
    assert_same_weights(FocalCodec.from_pretrained(folder, overrides={}), expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encoder_config.hops": 1}, "encoder_config of .* has the unknown key 'hops'"),
        ({"encoder_confg.dim": 1}, "has the unknown key 'encoder_confg'"),
        ({"": 1}, "has the unknown key ''"),
        (
            {"encoder_name.dim": 1},
            "override 'encoder_name.dim' does not fit .*'encoder_name' is no",
        ),
        (
            {"encoder_config.dim.x": 1},
            "override 'encoder_config.dim.x' does not fit .*: 'dim' is no",
        ),
        ({"encoder_config.dim": "16"}, "encoder_config.dim of .* must be a whole number from 1 to"),
        ({"encoder_config.ffn_dim": 25}, r"has encoder\..* but the configuration asks for"),
        ({"compressor_config.causal": True}, r"lacks 12 of .* first is compressor.*norm\.alpha"),
        ({1: 2}, r"overrides must map dotted keys to values, got \{1: 2\}"),
        (["encoder_config.dim"], "overrides must map dotted keys to values, got"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(folder, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        hub.load_parts(folder, overrides=overrides)
    assert "\n" not in str(error.value)


def test_torch_hub_loads_a_codec_from_the_repository(folder, root):
    codec = torch.hub.load(str(root), "focalcodec", source="local", config=str(folder))
    assert_same_weights(codec, FocalCodec.from_pretrained(folder))
    codec = torch.hub.load(
        str(root),
        "focalcodec",
        source="local",
        config=str(folder),
        pretrained=False,
        overrides={"encoder_config.dropout": 0.5},
    )
    assert codec.encoder.dropout == 0.5 and codec.training
    assert "lucadellalib/focalcodec_50hz" in str(inspect.signature(hubconf.focalcodec))


def test_a_failed_save_leaves_the_old_codec(make_codec, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        make_codec().save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
