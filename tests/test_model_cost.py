"""Cost of a codec: parameters, operations against counts by hand, real-time factors."""

import time

import pytest
import torch
from torch import Tensor, nn

from recipes.codecs.codec import Codec
from recipes.common.model_cost import macs_per_second, num_parameters, real_time_factors, timed


class TinyCodec(Codec):
    """A token of two codebooks every 320 samples; a layer on either side; work of known time."""

    name, model_id = "tiny", "none"
    sample_rate, sample_rate_output = 16_000, 24_000
    num_codebooks, codebook_size, token_rate = 2, 4, 50.0

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.calls: list[str] = []
        self.now_s = 0.0
        self.encode_s, self.decode_s = [], []  # seconds of work of each call

    def _sig_to_toks(self, sig: Tensor) -> Tensor:
        self.calls.append("encode")
        self.now_s += self.encode_s.pop(0) if self.encode_s else 0.0
        frames = _first(self.encoder(sig[:, : sig.shape[1] // 320 * 320].view(1, -1, 320)))
        return frames[:, :, :2].gt(0).long()

    def _toks_to_sig(self, toks: Tensor) -> Tensor:
        self.calls.append("decode")
        self.now_s += self.decode_s.pop(0) if self.decode_s else 0.0
        frames = torch.zeros(1, toks.shape[1], 480)
        frames[:, :, :2] = toks.float()
        return _first(self.decoder(frames)).flatten(1)


def _first(result: Tensor | tuple) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _codec(encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> TinyCodec:
    return TinyCodec(encoder or nn.Linear(320, 8), decoder or nn.Linear(480, 480)).eval()


def _transformer() -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(320, 4, dim_feedforward=64, batch_first=True), 1
    )


def test_shared_parameters_count_once():
    layer = nn.Linear(320, 8)
    codec = _codec(nn.Sequential(layer, nn.Linear(8, 320), layer))
    expected = (320 * 8 + 8) + (8 * 320 + 320) + (480 * 480 + 480)
    assert num_parameters(codec) == expected


def test_linear_layers_are_counted_by_side():
    macs = macs_per_second(_codec())
    assert macs.encode == 50 * 320 * 8
    assert macs.decode == 50 * 480 * 480
    assert macs.total == macs.encode + macs.decode
    assert "flop_counter" in macs.tool


@pytest.mark.parametrize(
    ("encoder", "macs_of_frames"),
    [
        pytest.param(lambda: nn.LSTM(320, 16, batch_first=True), lambda n: n * 64 * 336, id="lstm"),
        pytest.param(
            _transformer,
            lambda n: n * (4 * 320 * 320 + 2 * 320 * 64) + 2 * n * n * 320,
            id="transformer",
        ),
    ],
)
def test_layers_with_fused_kernels_are_counted(encoder, macs_of_frames):
    """The counter itself sees nothing of them on a CPU."""
    codec = _codec(encoder())
    assert macs_per_second(codec).encode == macs_of_frames(50)
    longer = macs_per_second(codec, seconds=3.0)
    assert longer.encode == pytest.approx(macs_of_frames(150) / 3)


def test_counting_leaves_the_settings_alone():
    settings = [torch.backends.mha.get_fastpath_enabled, torch.backends.mkldnn.is_available,
                lambda: torch.backends.cudnn.enabled]  # fmt: skip
    before = [setting() for setting in settings], torch._C._get_mkldnn_enabled()
    macs_per_second(_codec())
    with pytest.raises(RuntimeError):
        macs_per_second(_codec(nn.Linear(321, 8)))
    assert ([setting() for setting in settings], torch._C._get_mkldnn_enabled()) == before


@pytest.fixture
def codec(monkeypatch) -> TinyCodec:
    """Give a codec whose work alone moves the clock."""
    codec = _codec()
    monkeypatch.setattr(time, "perf_counter", lambda: codec.now_s)
    return codec


def test_factor_is_audio_over_processing_time(codec):
    codec.encode_s, codec.decode_s = [0.5] * 3, [0.125] * 3
    factors = real_time_factors(codec, seconds=0.4, warmup=0, repeats=3)
    assert codec.calls == ["encode", "decode"] * 3
    assert factors.encode == pytest.approx(0.4 / 0.5)
    assert factors.decode == pytest.approx(0.4 / 0.125)
    assert factors.total == pytest.approx(0.4 / 0.625)


def test_first_runs_do_not_count_and_the_median_of_the_others_does(codec):
    codec.encode_s, codec.decode_s = [64.0, 32.0, 0.25, 16.0, 0.5], [8.0, 4.0, 2.0, 0.25, 0.125]
    factors = real_time_factors(codec, seconds=0.4, warmup=2, repeats=3)
    assert codec.calls == ["encode", "decode"] * 5
    assert factors.encode == pytest.approx(0.4 / 0.5)
    assert factors.decode == pytest.approx(0.4 / 0.25)
    assert factors.total == pytest.approx(0.4 / 2.25)  # of the sums, not the sum of the medians


def test_nothing_measured_is_refused(codec):
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        real_time_factors(codec, repeats=0)
    assert codec.calls == []


def test_timed_gives_result_and_seconds(codec):
    def work() -> str:
        codec.now_s += 3.0
        return "done"

    assert timed(work, device="cpu") == ("done", 3.0)
