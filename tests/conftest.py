"""Fixtures that several test files share."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from speechbrain.utils.importutils import LazyModule

from focalcodec import FocalCodec
from focalcodec.activations import Snake
from focalcodec.focalnet import Compressor, Decompressor, FocalBlock
from focalcodec.logmel import LogMel
from focalcodec.quantizers import BinarySphericalQuantizer
from focalcodec.vocos import Vocos
from focalcodec.wavlm import WavLM
from recipes.export import export
from tests.stages import train, write_corpus

# Hypothesis asks every module for its file; SpeechBrain's redirections from old names would be
# imported by that, with a warning, if they did not have the answer.
for _module in list(sys.modules.values()):
    if isinstance(_module, LazyModule):
        _module.__dict__.setdefault("__file__", None)

ROOT = Path(__file__).resolve().parents[1]
_MIXER = partial(FocalBlock, layer_scale=0.3)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt, here and in children, which inherit that it is ignored.

    A shell ignores it in what it starts in the background, and tests send it to real processes.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Give every test the number of threads of the session, whatever a test before it has set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_log_of_earlier_runs() -> None:
    """Let no run of an earlier test log into a file and a console that are closed by now.

    SpeechBrain's handlers stay with the root logger, and print what they cannot write.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory) -> Path:
    """For hypothesis, whose examples share one folder."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def shared() -> Path:
    """Folder of real audio and golden vectors beside the checkout; tests skip without it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (real audio and golden vectors), which is not here")
    return folder


@pytest.fixture
def make_codec() -> Callable[..., FocalCodec]:
    """Maker of tiny codecs with random weights, in evaluation mode."""
    return _make_codec


def _make_codec(
    *,
    encoder: str = "logmel",
    factors: tuple[int, ...] = (1, 1, 1),
    dim: int = 16,
    code_dim: int = 6,
    hop_length: int = 320,
    mixer: Callable[[int], torch.nn.Module] = _MIXER,
    activation: Callable[[int], torch.nn.Module] = Snake,
    quantizer: torch.nn.Module | None = None,
    decoder: Callable[[int], torch.nn.Module] | None = None,
) -> FocalCodec:
    wavlm = partial(WavLM, num_layers=2, ffn_dim=24, num_heads=2, conv_pos=16, conv_pos_groups=2)
    encoders = {
        "logmel": partial(LogMel, n_mels=dim, hop_length=hop_length),
        "wavlm": partial(wavlm, hidden_dims=(8,) * 7, dim=dim, num_buckets=32, max_distance=80),
    }
    shared = {"mixer": mixer, "activation": activation}
    quantizer = quantizer or BinarySphericalQuantizer(code_dim)
    code_dim = quantizer.code_dim
    vocos = partial(Vocos, num_layers=2, dim=8, ffn_dim=12, n_fft=2 * hop_length)
    decoder = decoder or partial(vocos, hop_length=hop_length)
    codec = FocalCodec(
        encoders[encoder](),
        Compressor(
            dim, code_dim, hidden_dims=[12, 10, 8], downscale_factors=list(factors), **shared
        ),
        quantizer,
        Decompressor(
            code_dim, dim, hidden_dims=[8, 10, 12], upscale_factors=list(factors[::-1]), **shared
        ),
        decoder(dim),
    )
    return codec.eval()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def decoder_run(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "decoder"
    train("decoder", corpus, folder, number_of_epochs=3)
    return folder


@pytest.fixture(scope="session")
def quantizer_run(corpus, decoder_run) -> Path:
    folder = decoder_run.parent / "quantizer"
    train("quantizer", corpus, folder, number_of_epochs=3, decoder_checkpoint=decoder_run)
    return folder


@pytest.fixture(scope="session")
def codec_folder(decoder_run, quantizer_run) -> Path:
    folder = decoder_run.parent / "codec"
    export(decoder_run, quantizer_run, folder)
    return folder
