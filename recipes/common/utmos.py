"""UTMOS: naturalness of speech as listeners would rate it, predicted without a reference.

The model is ``utmos22_strong`` of the repository SpeechMOS, which torch.hub fetches: naming it
means running that repository's code. Its weights are loaded here, as weights alone, because
torch.hub would unpickle them.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from recipes.common.offline import is_offline
from recipes.common.score_models import (
    FoundModel,
    Source,
    loading,
    local_path,
    naming,
    one_line,
    unreachable,
)
from recipes.common.scoring import SAMPLE_RATE, MissingWeightsError, ScoreError, to_16k

WEIGHTS_URL = (
    "https://github.com/tarepan/SpeechMOS/releases/download/v1.0.0/utmos22_strong_step7459_v1.pt"
)
_ENTRY = "utmos22_strong"
_PACKAGE = "speechmos"  # in the repository; the wheel with the models of DNSMOS has the same name
_MIN_SAMPLES = 400  # one frame of wav2vec 2.0
_refused: dict[Path, str] = {}  # what gave no answer, which is not waited for twice


def utmos(hyp_sig: Tensor | np.ndarray, *, sample_rate: int, model: torch.nn.Module) -> float:
    """Predicted mean opinion score, one utterance at a time: padding would shift it.

    Parameters
    ----------
    hyp_sig : (T,) decoded, or any audio.
    sample_rate : Hz; the model always gets 16 kHz, of this project's resampler.
    model : see `load_utmos`.

    Returns
    -------
    About 1 (bad) to 5 (excellent).

    Raises
    ------
    ScoreError : if the audio is empty, shorter than 25 ms or not finite.
    ValueError : if the shape is not (T,).

    References
    ----------
    [1] Saeki et al., 2022, arXiv:2204.02152, as reimplemented by tarepan/SpeechMOS v1.2.0.
    """
    sig = to_16k(hyp_sig, sample_rate=sample_rate)
    if len(sig) < _MIN_SAMPLES:
        raise ScoreError("UTMOS needs at least 25 ms of audio")
    with torch.no_grad():
        return float(model(sig[None].to(_device(model)), SAMPLE_RATE))


def find_utmos(source: Source) -> FoundModel:
    """Find repository and weights, fetching what is not here.

    Parameters
    ----------
    source : ``owner/name:tag`` of torch.hub; a clone of such a repository, with the weights in it
        or beside it; or the file of weights, which lies in the clone.

    Raises
    ------
    FileNotFoundError : if a local folder does not exist.
    MissingWeightsError : if the code or the weights cannot be had.
    """
    path = local_path(source, field="utmos", hub_id=r"\w[\w.-]*/\w[\w.-]*:[\w./-]+")
    folder = _hub_folder(str(source)) if path is None else path
    weights = None
    if folder.is_file():
        weights, folder = folder, folder.parent
    if not (folder / "hubconf.py").is_file():
        raise MissingWeightsError(
            f"utmos weights: {folder} holds no hubconf.py; name a clone of tarepan/SpeechMOS: "
            + naming("utmos")
        )
    return FoundModel(str(source), folder, (weights or _weights(folder),))


@functools.lru_cache(maxsize=2)
def load_utmos(source: Source, *, device: str) -> torch.nn.Module:
    """Load UTMOS, once a process; arguments and errors as in `find_utmos`.

    MissingWeightsError also if what was found is no UTMOS, or the weights are not its own.
    """
    found = find_utmos(source)
    with loading(found, field="utmos", kind=_ENTRY), _own_package(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old form of weight norm
        model = torch.hub.load(str(found.folder), _ENTRY, pretrained=False, source="local")
        state = torch.load(found.weights[0], map_location="cpu", weights_only=True)
        model.load_state_dict(state)
        return model.float().eval().requires_grad_(False).to(device)


def describe_utmos(source: Source) -> str:
    """One line of what UTMOS depends on."""
    return f"{_ENTRY} of {find_utmos(source).describe()}"


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _hub_folder(source: str) -> Path:
    """Folder that torch.hub unpacks a repository into, fetched if it is not there."""
    repo, _, tag = source.partition(":")
    hub = Path(torch.hub.get_dir())
    folder = hub / "_".join([*repo.split("/"), tag.replace("/", "_")])
    if not folder.is_dir():
        # Not validated by GitHub's API, which refuses after 60 requests an hour of one address.
        options = {"skip_validation": True, "trust_repo": True, "verbose": False}
        _fetch(folder, source, partial(torch.hub.list, source, **options))
    return folder


def _weights(folder: Path) -> Path:
    name = WEIGHTS_URL.rpartition("/")[2]
    cache = Path(torch.hub.get_dir(), "checkpoints")
    for place in (folder, folder.parent, cache):
        if (place / name).is_file():
            return place / name
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / name
    _fetch(target, folder, partial(torch.hub.download_url_to_file, WEIGHTS_URL, str(target)))
    return target


def _fetch(target: Path, source: Source, download: Callable[[], object]) -> None:
    """Have ``target`` made, by one process at a time."""
    fix = (
        f"clone https://github.com/tarepan/SpeechMOS, tag v1.2.0, put {WEIGHTS_URL} into the clone "
        "and name it"
    )
    if is_offline():
        raise MissingWeightsError(unreachable(source, field="utmos", fix=fix))
    if target not in _refused:
        hub = Path(torch.hub.get_dir())
        hub.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(hub / "speechmos.lock"), _own_package():
                if not target.exists():
                    download()
            return
        except Exception as error:  # network, GitHub, archive: all of them mean the same here
            _refused[target] = one_line(error)
    raise MissingWeightsError(unreachable(source, field="utmos", fix=fix, reason=_refused[target]))


@contextmanager
def _own_package() -> Iterator[None]:
    """Let the repository import its own package, whatever has its name, and leave no trace."""
    hidden = _loaded_modules()
    for name in hidden:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in _loaded_modules():
            del sys.modules[name]
        sys.modules.update(hidden)


def _loaded_modules() -> dict:
    return {
        name: module
        for name, module in sys.modules.items()
        if name == _PACKAGE or name.startswith(f"{_PACKAGE}.")
    }
