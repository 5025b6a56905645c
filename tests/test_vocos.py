"""Vocos: published numbers, an exact inverse STFT, and padding that never matters."""

import inspect
import json
from math import prod

import pytest
import torch
from safetensors.torch import load_file

from focalcodec.convnext import ConvNeXt, ConvNeXtBlock
from focalcodec.masking import lengths_to_mask
from focalcodec.vocos import ISTFTHead, Vocos, istft

# Of the peak; measured float32 noise of the references is up to 3e-6 (golden/README.md).
GOLDEN_TOLERANCE = 5e-6


@pytest.fixture
def vocos():
    vocos = Vocos(6, num_layers=2, dim=8, ffn_dim=12, n_fft=32, hop_length=10)
    for parameter in vocos.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape) + 0.1
    return vocos.eval()


def load_part(module, tensors, *, prefix):
    selected = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    module.load_state_dict(selected, strict=True)
    return module.eval()


def assert_golden(result, reference):
    assert result.shape == reference.shape
    assert (result - reference).abs().max() <= GOLDEN_TOLERANCE * reference.abs().max()


@pytest.mark.parametrize(
    ("case", "call", "module"),
    [
        (
            "vocos_block_noncausal",
            "T9",
            ConvNeXtBlock(8, ffn_dim=12, layerscale_init=0.3),
        ),
        ("istft_head_noncausal", "T6", ISTFTHead(8, n_fft=48, hop_length=16)),
    ],
    ids=["block", "head"],
)
@torch.no_grad()
def test_module_gives_published_values(case, call, module, shared):
    tensors = load_file(shared / "golden/modules/io.safetensors")
    load_part(module, tensors, prefix=f"{case}/param/")
    x, reference = tensors[f"{case}/{call}/in0"], tensors[f"{case}/{call}/out"]
    assert_golden(module(x), reference)
    assert_golden(module(x, mask=torch.ones(x.shape[:2], dtype=torch.bool)), reference)


@pytest.mark.parametrize("call", ["T7", "T1"])
def test_istft_gives_published_values(call, shared):
    tensors = load_file(shared / "golden/modules/io.safetensors")
    spec = torch.view_as_complex(tensors[f"istft_noncausal/{call}/in0"])
    sig = istft(spec, window=torch.hann_window(64), hop_length=20)
    assert_golden(sig, tensors[f"istft_noncausal/{call}/out"])


@pytest.mark.parametrize("case", ["50hz", "25hz", "12_5hz"])
@torch.no_grad()
def test_decoder_gives_published_values(case, shared):
    folder = shared / f"golden/noncausal_{case}"
    arguments = json.loads((folder / "config.json").read_text())["decoder_config"]
    del arguments["causal"]
    vocos = Vocos(**arguments)
    load_part(vocos, load_file(folder / "model.safetensors"), prefix="decoder.")
    tensors = load_file(folder / "io.safetensors")
    sig = vocos(tensors["single/qfeats"])
    assert_golden(sig[:, -512:], tensors["single/rec_raw_tail"])
    size = min(sig.shape[1], tensors["single/rec_sig"].shape[1])
    assert_golden(sig[:, :size], tensors["single/rec_sig"][:, :size])


def test_default_size_has_published_parameters(shared):
    published = {}
    for line in (shared / "golden/keys/keys_50hz_v002_layout.txt").read_text().splitlines():
        key, shape, _ = line.split("\t")
        if key.startswith("decoder."):
            published[key.removeprefix("decoder.")] = tuple(json.loads(shape))
    with torch.device("meta"):
        ours = {key: tuple(value.shape) for key, value in Vocos().state_dict().items()}
    assert ours == published
    assert sum(map(prod, ours.values())) == pytest.approx(16.8e6, abs=0.05e6)


def test_initial_layer_scale_is_one_over_layers():
    for layer in Vocos(4, num_layers=5, dim=8, ffn_dim=8, n_fft=16, hop_length=4).backbone.layers:
        assert torch.equal(layer.gamma, torch.full((8,), 0.2))


@torch.no_grad()
def test_decoding_ignores_padding(vocos):
    lengths = torch.tensor([9, 1, 4, 2, 8])
    feats = torch.randn(len(lengths), 9, 6)
    mask = lengths_to_mask(lengths, 9)
    sig = vocos(feats.masked_fill(~mask[..., None], torch.nan), mask=mask)
    assert sig.shape == (5, 90)
    assert torch.equal(sig, vocos(feats.masked_fill(~mask[..., None], 1e4), mask=mask))
    for item, row, length in zip(feats, sig, lengths.tolist(), strict=True):
        alone = vocos(item[None, :length])[0]
        assert alone.shape == (length * 10,)
        # float32; including the last samples, where fewer windows overlap.
        assert (row[: length * 10] - alone).abs().max() <= 5e-6 * alone.abs().max()
        assert not row[length * 10 :].any()


@pytest.mark.parametrize(("n_fft", "hop_length"), [(1024, 320), (960, 320), (64, 20), (16, 14)])
def test_istft_inverts_an_stft(n_fft, hop_length):
    num_frames = 12
    sig = torch.randn(2, num_frames * hop_length, dtype=torch.float64)
    window = torch.hann_window(n_fft, dtype=torch.float64)
    trim = (n_fft - hop_length) // 2
    frames = torch.nn.functional.pad(sig, (trim, trim)).unfold(1, n_fft, hop_length)
    spec = torch.fft.rfft(frames * window)
    assert spec.shape[1] == num_frames
    assert torch.allclose(istft(spec, window=window, hop_length=hop_length), sig, atol=1e-10)


def test_istft_sums_over_fold():
    window = torch.hann_window(64)
    spec = torch.randn(3, 9, 33, dtype=torch.complex64)
    frames = (torch.fft.irfft(spec) * window).transpose(1, 2)
    weights = window.square()[None, :, None].expand(1, 64, 9)
    folded = [
        torch.nn.functional.fold(x, (1, 8 * 20 + 64), (1, 64), stride=(1, 20)).flatten(1)
        for x in (frames, weights)
    ]
    expected = (folded[0] / folded[1].clamp(min=1e-11))[:, 22:-22]
    sig = istft(spec, window=window, hop_length=20)
    assert torch.allclose(sig, expected, atol=1e-5)  # float32, sums of up to 4 frames


@pytest.mark.parametrize("num_frames", [1, 2, 7])
@torch.no_grad()
def test_every_hop_is_synthesised(num_frames, vocos):
    """Published outputs end with up to 399 copies of one value; no hop of ours is flat."""
    sig = vocos(torch.randn(3, num_frames, 6))
    assert sig.shape == (3, num_frames * 10)
    hops = sig.unflatten(1, (num_frames, 10))
    assert (hops.std(dim=2) > 1e-3).all()
    assert (sig.diff(dim=1)[:, -9:] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_step(dtype, vocos):
    vocos.train()
    feats = torch.randn(2, 5, 6)
    mask = lengths_to_mask(torch.tensor([5, 3]), 5)
    with torch.autocast("cpu", dtype=dtype):
        sig = vocos(feats, mask=mask)
        assert sig.dtype == torch.float32
        loss = (sig - torch.randn_like(sig)).square().mean()
    loss.backward()
    for name, parameter in vocos.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    reference = vocos(feats, mask=mask)
    # Only the backbone is rounded: bf16 has 8 bits.
    assert (sig - reference).abs().max() <= 0.1 * reference.abs().max()


@torch.no_grad()
def test_head_stays_float32_under_autocast(vocos):
    x = torch.randn(2, 5, 8)
    reference = vocos.head(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vocos.head(x), reference)


@torch.no_grad()
def test_bf16_weights_decode(vocos):
    feats = torch.randn(1, 5, 6)
    reference = vocos(feats)
    sig = vocos.bfloat16()(feats.bfloat16())
    assert sig.dtype == torch.float32
    assert (sig - reference).abs().max() <= 0.2 * reference.abs().max()  # 8 bits in 2 layers


def test_gradient_is_that_of_finite_differences():
    head = ISTFTHead(4, n_fft=12, hop_length=4).double()
    x = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = lengths_to_mask(torch.tensor([4, 2]), 4)
    assert torch.autograd.gradcheck(lambda x: head(x, mask=mask), (x,))


def test_huge_magnitudes_are_clamped_and_keep_finite_gradients():
    head = ISTFTHead(4, n_fft=16, hop_length=8)
    head.proj.weight.data.zero_()
    head.proj.bias.data.zero_()
    head.proj.bias.data[:9] = 1000.0  # exp overflows; phase 0
    x = torch.randn(1, 6, 4, requires_grad=True)
    sig = head(x)
    head.proj.bias.data[:9] = torch.tensor(100.0).log()
    assert torch.allclose(sig, head(x), atol=1e-3)  # peak 100 times the window's weights
    sig.sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_padding_has_no_gradient(vocos):
    mask = lengths_to_mask(torch.tensor([6, 2]), 6)
    feats = torch.randn(2, 6, 6).masked_fill(~mask[..., None], torch.nan).requires_grad_()
    vocos(feats, mask=mask).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in vocos.parameters())
    assert feats.grad[mask].any() and not feats.grad[~mask].any()


def test_constructor_arguments_are_attributes():
    modules = [
        Vocos(4, num_layers=1, dim=8, ffn_dim=8, kernel_size=3, n_fft=16, hop_length=4),
        ConvNeXt(4, num_layers=1, dim=8, ffn_dim=8),
        ConvNeXtBlock(8, ffn_dim=8, layerscale_init=0.5),
        ISTFTHead(8, n_fft=16, hop_length=4),
    ]
    for module in modules:
        arguments = {
            name: getattr(module, name) for name in inspect.signature(type(module)).parameters
        }
        rebuilt = type(module)(**arguments)
        for name, value in module.state_dict().items():
            assert rebuilt.state_dict()[name].shape == value.shape
    assert not any("window" in name for name in modules[0].state_dict())


@pytest.mark.parametrize(("n_fft", "hop_length"), [(320, 320), (16, 20), (16, 5), (15, 5), (16, 0)])
def test_windows_that_leave_gaps_are_refused(n_fft, hop_length):
    with pytest.raises(ValueError, match=f"n_fft={n_fft}, hop_length={hop_length}"):
        Vocos(4, dim=8, ffn_dim=8, n_fft=n_fft, hop_length=hop_length)


@pytest.mark.parametrize(
    ("feats", "mask", "message"),
    [
        (torch.zeros(2, 6), None, "feats must be"),
        (torch.zeros(2, 0, 6), None, "at least 1 frame"),
        (torch.zeros(2, 3, 7), None, "6 channels"),
        (torch.zeros(2, 3, 6), torch.ones(2, 3), "mask must be bool"),
    ],
    ids=["2-D", "empty", "channels", "float mask"],
)
def test_wrong_input_is_named(feats, mask, message, vocos):
    with pytest.raises(ValueError, match=message):
        vocos(feats, mask=mask)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        Vocos(4, kernel_size=6)
