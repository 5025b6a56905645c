"""Binary quantizers: bits, tokens and codes; the entropy term against brute force; commitment."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.entropy_loss import SIDES, time_steps
from focalcodec import entropy
from focalcodec.quantizers import BinarySphericalQuantizer, LookupFreeQuantizer

QUANTIZERS = [BinarySphericalQuantizer, LookupFreeQuantizer]
CLAMPS = [pytest.param(None, id="exact"), pytest.param(1e-5, id="clamp")]
both_quantizers = pytest.mark.parametrize("make_quantizer", QUANTIZERS, ids=lambda q: q.__name__)


def brute_force(quantizer, lats, *, inverse_temperature=100.0, clamp=None):
    """Sample and codebook entropy from the softmax over every code, by the definition."""
    if isinstance(quantizer, BinarySphericalQuantizer):
        lats = lats / lats.norm(dim=-1, keepdim=True)
    toks = range(quantizer.codebook_size)
    signs = [[1 if c == "1" else -1 for c in f"{t:0{quantizer.code_dim}b}"] for t in toks]
    codebook = torch.tensor(signs, dtype=lats.dtype) * quantizer.code_value
    log_p = (2 * inverse_temperature * lats.flatten(0, -2) @ codebook.T).log_softmax(dim=-1)
    p, mean = log_p.exp(), log_p.exp().mean(dim=0)
    if clamp is None:
        return -(p * log_p).sum(-1).mean(), -torch.special.xlogy(mean, mean).sum()
    sample = -(p * p.clamp(min=clamp).log()).sum(-1).mean()
    return sample, -(mean * mean.clamp(min=clamp).log()).sum()


def gradients(terms, lats):
    """Gradients of both entropies with respect to lats."""
    return [torch.autograd.grad(term, lats, retain_graph=True)[0] for term in terms]


def close(actual, expected, *, rtol):
    """Whether the L2 distance is small; the floor is rounding where the gradient vanishes (D=1)."""
    return (actual - expected).norm() <= rtol * (expected.norm() + 1e-3)


# ------------------------------------------------------------------ tokens and codes


def test_toks_codes_roundtrip_all_8192():
    quantizer = BinarySphericalQuantizer(13)
    toks = torch.arange(8192)
    assert torch.equal(quantizer.codes_to_toks(quantizer.toks_to_codes(toks)), toks)
    assert torch.equal(quantizer.lats_to_toks(3.7 * quantizer.codebook), toks)
    assert torch.equal(quantizer.toks_to_codes(toks.short()), quantizer.codebook)
    assert quantizer.codebook.unique(dim=0).shape == (8192, 13)


def test_first_entry_is_the_most_significant_bit():
    quantizer = BinarySphericalQuantizer(5)
    lats = torch.tensor([[1.0, -1, -1, -1, -1], [-1, -1, -1, 1, 1], [1, 1, 1, 1, -1]])
    assert quantizer(lats).toks.tolist() == [16, 3, 30]


@both_quantizers
def test_codes_are_the_signs_with_the_length_of_the_code(make_quantizer):
    quantizer = make_quantizer(7)
    lats = torch.randn(2, 3, 7)
    toks, codes = quantizer(lats)
    assert torch.equal(codes, lats.sign() * torch.tensor(quantizer.code_value))
    assert codes.norm(dim=-1).allclose(torch.tensor(7**0.5 * quantizer.code_value))
    assert torch.equal(codes, quantizer.toks_to_codes(toks))
    assert toks.dtype == torch.int64 and toks.shape == (2, 3)


def test_zero_negative_zero_and_nan_give_bit_0():
    quantizer = BinarySphericalQuantizer(4)
    lats = torch.tensor([0.0, -0.0, math.nan, 1e-45])
    assert quantizer.lats_to_toks(lats).item() == 1
    assert quantizer.lats_to_codes(lats).tolist() == [-0.5, -0.5, -0.5, 0.5]
    assert quantizer(lats).toks.item() == 1


@pytest.mark.parametrize("suffix", ["", "_nan"])
def test_toks_and_codes_equal_the_published_ones(shared, suffix):
    golden = load_file(shared / "golden" / "modules" / "io.safetensors")
    quantizer = BinarySphericalQuantizer(golden["bsq/lats"].shape[-1])
    toks, codes = quantizer(golden[f"bsq/lats{suffix}"])
    assert torch.equal(toks, golden[f"bsq/toks{suffix}"])
    assert codes.allclose(golden[f"bsq/codes{suffix}"], atol=1e-7)  # 1/sqrt(D) in float32
    assert quantizer.codebook[:64].allclose(golden["bsq/codebook_first64"], atol=1e-7)


def test_any_rank_of_latents_is_accepted():
    quantizer = BinarySphericalQuantizer(3)
    lats = torch.randn(2, 4, 5, 3)
    toks, codes = quantizer(lats)
    assert toks.shape == (2, 4, 5) and codes.shape == lats.shape
    assert torch.equal(quantizer(lats[1, 2, 3]).toks, toks[1, 2, 3])
    loss = quantizer.entropy_loss(lats).loss
    assert loss.allclose(quantizer.entropy_loss(lats.flatten(0, 2)).loss, atol=1e-6)


@both_quantizers
def test_nothing_is_in_the_state_dict(make_quantizer):
    quantizer = make_quantizer(13)
    assert not quantizer.state_dict() and not list(quantizer.parameters())
    assert (quantizer.code_dim, quantizer.codebook_size) == (13, 8192)


# ------------------------------------------------------------------ straight-through gradient


def test_gradient_of_codes_is_that_of_the_normalized_latents():
    quantizer = BinarySphericalQuantizer(6)
    lats, weight = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 6)
    (actual,) = torch.autograd.grad((quantizer(lats).codes * weight).sum(), lats)
    unit = lats / lats.norm(dim=-1, keepdim=True)
    (expected,) = torch.autograd.grad((unit * weight).sum(), lats)
    assert actual.allclose(expected, atol=1e-6)
    assert expected.abs().max() > 0.1


def test_gradient_of_lookup_free_codes_is_the_identity():
    lats, weight = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6)
    (grad,) = torch.autograd.grad((LookupFreeQuantizer(6)(lats).codes * weight).sum(), lats)
    assert torch.equal(grad, weight)


@both_quantizers
def test_training_and_inference_give_the_same_codes(make_quantizer):
    quantizer, lats = make_quantizer(9), torch.randn(3, 50, 9)
    with torch.no_grad():
        expected = quantizer(lats)
    toks, codes = quantizer(lats.requires_grad_())
    assert codes.requires_grad and torch.equal(codes, expected.codes)
    assert torch.equal(toks, expected.toks)


def test_padding_gets_zeros_and_no_gradient():
    quantizer = BinarySphericalQuantizer(4)
    lats, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, True], [True, False, False]])
    padded = lats.masked_fill(~mask[..., None], math.nan).requires_grad_()
    toks, codes = quantizer(padded, mask=mask)
    assert torch.equal(toks, quantizer(lats).toks * mask)
    assert torch.equal(codes, quantizer(lats).codes * mask[..., None])
    codes.mul(torch.randn(2, 3, 4)).sum().backward()
    assert padded.grad.isfinite().all()
    assert not padded.grad[~mask].any() and padded.grad[mask].abs().min() > 0


# ------------------------------------------------------------------ entropy term


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("temperature", [3.0, 100.0])
@pytest.mark.parametrize("code_dim", [1, 2, 3, 5, 8, 10])
@both_quantizers
def test_entropy_terms_equal_brute_force(make_quantizer, code_dim, temperature, clamp):
    quantizer = make_quantizer(code_dim)
    lats = torch.randn(3, 40, code_dim, dtype=torch.float64)
    # A unit vector in one dimension is a constant; small latents keep lookup-free bits undecided.
    lats = lats * (1 if make_quantizer is BinarySphericalQuantizer else 0.05)
    expected_lats = lats.requires_grad_()
    expected = brute_force(quantizer, expected_lats, inverse_temperature=temperature, clamp=clamp)
    for dtype, atol, rtol in [(torch.float64, 1e-12, 1e-9), (torch.float32, 5e-6, 2e-5)]:
        ours = lats.detach().to(dtype).requires_grad_()
        terms = quantizer.entropy_loss(
            ours, inverse_temperature=temperature, diversity_weight=0.7, clamp=clamp
        )
        assert terms.loss.dtype == dtype
        actual = (terms.sample_entropy, terms.codebook_entropy)
        for a, e in zip(actual, expected, strict=True):
            assert abs(a.item() - e.item()) <= atol
        assert torch.equal(terms.loss, actual[0] - 0.7 * actual[1])
        for a, e in zip(gradients(actual, ours), gradients(expected, expected_lats), strict=True):
            assert close(a.double(), e, rtol=rtol)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_blocks_of_frames_do_not_change_the_result(clamp, monkeypatch):
    quantizer, lats = BinarySphericalQuantizer(5), torch.randn(100, 5, dtype=torch.float64)
    expected = brute_force(quantizer, lats.requires_grad_(), clamp=clamp)
    monkeypatch.setitem(entropy._TABLE_ELEMENTS, "cpu", 12 * 7)  # blocks of 7 frames
    terms = quantizer.entropy_loss(lats, clamp=clamp)
    expected_loss = expected[0] - expected[1]
    assert abs(terms.loss.item() - expected_loss.item()) < 1e-12
    ours, theirs = gradients([terms.loss], lats), gradients([expected_loss], lats)
    assert close(ours[0], theirs[0], rtol=1e-9)


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("code_dim", [1, 4, 5])
def test_entropy_gradients_pass_a_numerical_check(code_dim, clamp):
    quantizer = BinarySphericalQuantizer(code_dim)
    lats = torch.randn(6, code_dim, dtype=torch.float64, requires_grad=True)
    clamp = clamp and 1e-2  # at a moderate temperature only a large bound is active

    def entropies(lats):
        return quantizer.entropy_loss(lats, inverse_temperature=2.0, clamp=clamp)[1:]

    assert gradcheck(entropies, (lats,))


def test_entropy_loss_equals_speechbrain():
    from speechbrain.lobes.models.bsq import BinarySphericalQuantizer as SpeechBrainQuantizer

    lats = torch.randn(2, 300, 10, requires_grad=True)
    codes, toks, expected = SpeechBrainQuantizer(10, entropy_loss_weight=0.1)(lats)
    ours = BinarySphericalQuantizer(10)
    assert torch.equal(ours(lats).toks, toks.long())
    assert ours(lats).codes.allclose(codes, atol=1e-6)
    actual = 0.1 * ours.entropy_loss(lats, clamp=1e-5).loss
    assert abs(actual.item() - expected.item()) < 1e-6
    ours_grad, theirs_grad = gradients([actual, expected], lats)
    assert close(ours_grad, theirs_grad, rtol=2e-5)  # float32 softmax over 1024 codes


@pytest.mark.parametrize("clamp", CLAMPS)
def test_padding_never_enters_the_entropy(clamp):
    quantizer = BinarySphericalQuantizer(6)
    lats, lengths = torch.randn(3, 20, 6, dtype=torch.float64), [20, 7, 1]
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    real = torch.cat([x[:n] for x, n in zip(lats, lengths, strict=True)])
    padded = lats.masked_fill(~mask[..., None], math.nan).requires_grad_()
    terms = quantizer.entropy_loss(padded, mask=mask, clamp=clamp)
    expected = brute_force(quantizer, real.requires_grad_(), clamp=clamp)
    assert abs(terms.loss.item() - (expected[0] - expected[1]).item()) < 1e-12
    terms.loss.backward()
    (expected_grad,) = torch.autograd.grad(expected[0] - expected[1], real)
    assert close(padded.grad[mask], expected_grad, rtol=1e-9)
    assert not padded.grad[~mask].any()


def test_collapsed_and_uniform_codes_give_the_extreme_entropies():
    quantizer = BinarySphericalQuantizer(8)
    collapsed = quantizer.entropy_loss(torch.ones(50, 8))
    assert collapsed.sample_entropy.abs() < 1e-6 and collapsed.codebook_entropy.abs() < 1e-6
    uniform = quantizer.entropy_loss(quantizer.codebook)
    assert uniform.sample_entropy.abs() < 1e-6
    assert uniform.codebook_entropy.item() == pytest.approx(8 * math.log(2), abs=1e-5)


@pytest.mark.parametrize("clamp", CLAMPS)
@both_quantizers
def test_extreme_latents_give_finite_entropies_and_gradients(make_quantizer, clamp):
    lats = torch.cat([torch.zeros(2, 5), 1e20 * torch.randn(4, 5), 1e-30 * torch.ones(2, 5)])
    terms = make_quantizer(5).entropy_loss(lats.requires_grad_(), clamp=clamp)
    terms.loss.backward()
    assert terms.loss.isfinite() and lats.grad.isfinite().all()


def test_the_entropy_term_trains_towards_even_use_of_codes():
    quantizer = BinarySphericalQuantizer(4)
    lats = (torch.randn(200, 4) + 2.0).requires_grad_()  # nearly all frames in one code
    optimizer = torch.optim.Adam([lats], lr=0.05)
    before = quantizer.entropy_loss(lats)
    for _ in range(200):
        optimizer.zero_grad()
        quantizer.entropy_loss(lats, inverse_temperature=10.0).loss.backward()
        optimizer.step()
    after = quantizer.entropy_loss(lats)
    assert after.codebook_entropy > before.codebook_entropy + 0.5
    assert after.loss < before.loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_codes_and_entropy_in_float32(dtype):
    quantizer, lats = BinarySphericalQuantizer(7), torch.randn(2, 50, 7).to(dtype)
    exact, low = lats.float().requires_grad_(), lats.clone().requires_grad_()
    expected = quantizer.entropy_loss(exact).loss
    expected.backward()
    with torch.autocast("cpu", dtype=dtype):
        codes = quantizer(low).codes
        loss = quantizer.entropy_loss(low).loss
        loss.backward()
    assert codes.dtype == loss.dtype == torch.float32
    assert torch.equal(codes, quantizer(exact).codes) and torch.equal(loss, expected)
    assert torch.equal(low.grad, exact.grad.to(dtype))


def test_all_sides_of_the_benchmark_do_the_same_work():
    lats = torch.randn(1, 100, 6, requires_grad=True)
    steps = {name: make(6, "cpu") for name, make in SIDES.items()}
    times, values, grads = time_steps(steps, lats=lats, repeats=1)
    assert len(values) == 3 and min(times.values()) > 0
    for name in steps:
        assert values[name] == pytest.approx(
            values["SpeechBrain"], abs=5e-3
        )  # with and without clamp
        assert close(grads[name], grads["SpeechBrain"], rtol=1e-3)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest storage that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.itemsize)
        return result


@pytest.mark.parametrize("clamp", CLAMPS)
def test_no_tensor_of_frames_times_codes_at_16_bits(clamp):
    frames = 3000 if clamp is None else 40  # the clamped sum visits every code of every frame
    lats = torch.randn(frames, 16, requires_grad=True)
    with LargestTensor() as largest:
        BinarySphericalQuantizer(16).entropy_loss(lats, clamp=clamp).loss.backward()
    assert lats.grad.isfinite().all() and lats.grad.any()
    assert 2**16 <= largest.elements <= 2**18  # a block's tables; frames x codes is 2**27 (2**21)


# ------------------------------------------------------------------ several ranks

# Frames of each of two ranks' two utterances: alike, unlike, and a rank with none.
RANK_LENGTHS = {
    "equal": [[5, 5], [5, 5]],
    "unequal": [[5, 1], [3, 0]],
    "one_empty": [[4, 2], [0, 0]],
}


def _batch(lengths):
    generator = torch.Generator().manual_seed(1)
    feats = torch.randn(2, 2, 5, 6, generator=generator, dtype=torch.float64)
    return feats, torch.arange(5) < torch.tensor(lengths)[..., None]


def _compressor():
    torch.manual_seed(2)
    return nn.Linear(6, 5).double()


def _distributed_worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    quantizer, results = BinarySphericalQuantizer(5), {}
    for case, lengths in RANK_LENGTHS.items():
        compressor = nn.parallel.DistributedDataParallel(_compressor())
        feats, mask = _batch(lengths)
        terms = quantizer.entropy_loss(compressor(feats[rank]), mask=mask[rank])
        terms.loss.backward()
        results[case] = [x.detach() for x in terms] + [p.grad for p in compressor.parameters()]
    alone = quantizer.entropy_loss(_compressor()(_batch([[5, 5]] * 2)[0][rank]), across_ranks=False)
    results["alone"] = [x.detach() for x in alone]
    nothing = torch.zeros(3, dtype=torch.bool)
    results["empty"] = quantizer.entropy_loss(torch.randn(3, 5), mask=nothing).loss
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def rank_results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_distributed_worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", RANK_LENGTHS)
def test_two_ranks_give_values_and_gradients_of_one_process(rank_results, case):
    compressor, (feats, mask) = _compressor(), _batch(RANK_LENGTHS[case])
    terms = BinarySphericalQuantizer(5).entropy_loss(compressor(feats), mask=mask)
    terms.loss.backward()
    expected = [*terms, *(p.grad for p in compressor.parameters())]
    assert expected[-1].abs().max() > 1e-3
    for actual in rank_results:
        for a, e in zip(actual[case], expected, strict=True):
            assert a.allclose(e, rtol=1e-10, atol=1e-12)


def test_a_rank_can_keep_to_its_own_frames(rank_results):
    feats, _ = _batch([[5, 5], [5, 5]])
    for rank in range(2):
        expected = BinarySphericalQuantizer(5).entropy_loss(_compressor()(feats[rank]))
        for a, e in zip(rank_results[rank]["alone"], expected, strict=True):
            assert a.allclose(e)


def test_the_entropy_is_nan_on_all_ranks_when_none_has_a_frame(rank_results):
    assert all(results["empty"].isnan() for results in rank_results)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("toks", [[-1], [0, 32]], ids=["negative", "too_large"])
def test_tokens_out_of_range_are_refused(toks):
    with pytest.raises(ValueError, match=r"toks must be in \[0, 32\)"):
        BinarySphericalQuantizer(5).toks_to_codes(torch.tensor(toks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_tokens_that_are_not_integers_are_refused(dtype):
    with pytest.raises(ValueError, match="toks must be integers"):
        BinarySphericalQuantizer(5).toks_to_codes(torch.ones(3, dtype=dtype))


def test_no_tokens_give_no_codes():
    quantizer = BinarySphericalQuantizer(5)
    assert quantizer.toks_to_codes(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 5)
    assert quantizer(torch.zeros(2, 0, 5)).toks.shape == (2, 0)


@pytest.mark.parametrize(
    "method", ["forward", "lats_to_codes", "lats_to_toks", "codes_to_toks", "entropy_loss"]
)
def test_wrong_vectors_are_refused(method):
    call = getattr(BinarySphericalQuantizer(5), method)
    with pytest.raises(ValueError, match=r"\(\.\.\., 5\).*got shape \(2, 4\)"):
        call(torch.randn(2, 4))
    with pytest.raises(ValueError, match="floating point, got torch.int64"):
        call(torch.ones(2, 5, dtype=torch.int64))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_inverse_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="inverse_temperature"):
        BinarySphericalQuantizer(5).entropy_loss(torch.randn(2, 5), inverse_temperature=temperature)


@pytest.mark.parametrize("clamp", [0.0, 1.0, -1e-5])
def test_clamp_must_be_a_probability(clamp):
    with pytest.raises(ValueError, match="clamp"):
        BinarySphericalQuantizer(5).entropy_loss(torch.randn(2, 5), clamp=clamp)


def test_an_entropy_without_frames_is_nan():
    quantizer, lats = BinarySphericalQuantizer(5), torch.randn(2, 3, 5)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert quantizer.entropy_loss(lats, mask=mask).loss.isnan()
    assert quantizer.entropy_loss(lats[:0]).loss.isnan()


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3)], ids=["shape", "dtype"]
)
def test_a_mask_that_does_not_fit_is_refused(mask):
    quantizer, lats = BinarySphericalQuantizer(5), torch.randn(2, 3, 5)
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 3\)"):
        quantizer(lats, mask=mask)
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 3\)"):
        quantizer.entropy_loss(lats, mask=mask)


@pytest.mark.parametrize("code_dim", [0, 63, 13.0, True, "13"])
def test_code_dim_must_be_a_number_of_bits(code_dim):
    with pytest.raises(ValueError, match="code_dim"):
        BinarySphericalQuantizer(code_dim)


# ------------------------------------------------------------------ commitment


def test_commitment_is_the_mean_squared_distance_of_real_frames_to_their_codes():
    lats = torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    padded = lats.masked_fill(~mask[..., None], math.nan).requires_grad_()
    loss = LookupFreeQuantizer(4).commitment_loss(padded, mask=mask)
    loss.backward()
    assert padded.grad[mask].all() and not padded.grad[~mask].any()
    expected = (lats - lats.sign())[mask].square().mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_commitment_pulls_latents_to_their_codes():
    lats = torch.tensor([[[3.0, -0.2]]], requires_grad=True)
    LookupFreeQuantizer(2).commitment_loss(lats).backward()
    assert lats.grad.tolist() == [[[2.0, pytest.approx(0.8)]]]


def test_on_the_sphere_there_is_no_commitment():
    assert BinarySphericalQuantizer(4).commitment_loss(torch.randn(1, 2, 4)) is None
