"""Which models score audio, where their files are, and what they are told apart by.

A model is named by a hub id or by what is on this machine. What is here, in a folder or in a hub's
cache, is used without asking the network; the network is never asked where
`recipes.common.offline.is_offline`. Weights are read as weights alone: no pickled objects and no
YAML of strangers.
"""

import functools
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recipes.common.offline import is_offline
from recipes.common.scoring import MissingWeightsError

Source = str | os.PathLike[str]


class ScoreModels(NamedTuple):
    """Models of the scores that need one, each a hub id or a folder on this machine.

    A hub id is ``owner/name``, with ``@revision`` for a branch, tag or commit; that of UTMOS is a
    repository of torch.hub, ``owner/name:tag``. ``speaker`` and ``speaker_strict`` take x-vector
    models of transformers and ECAPA-TDNNs of SpeechBrain, see
    `recipes.common.speaker_similarity`, which also says why the stricter one is what it is.
    """

    utmos: Source = "tarepan/SpeechMOS:v1.2.0"
    asr: Source = "openai/whisper-small"
    speaker: Source = "microsoft/wavlm-base-sv"
    speaker_strict: Source = "speechbrain/spkrec-ecapa-voxceleb"
    device: str = "cpu"


DEFAULT_MODELS = ScoreModels()


def named_models(sources: Mapping[str, Source], *, device: str) -> ScoreModels:
    """Take the models that a training names, and the defaults for the others.

    Parameters
    ----------
    sources : hub id or folder by field of `ScoreModels`.
    device : where the models run.

    Raises
    ------
    ValueError : if a field is not known, or a source is no text.
    """
    fields = [field for field in ScoreModels._fields if field != "device"]
    known = isinstance(sources, Mapping) and all(
        field in fields and isinstance(source, (str, os.PathLike))
        for field, source in sources.items()
    )
    if not known:
        raise ValueError(
            f"score_models must name hub ids or folders by {', '.join(fields)}, got {sources!r}; "
            "write it as --score_models '{asr: FOLDER}', or {} for the defaults"
        )
    return ScoreModels(**sources, device=device)


def naming(field: str) -> str:
    """Option that names a folder for a model, in an evaluation and in a training."""
    return f"--{field}_model FOLDER (in a training: --score_models '{{{field}: FOLDER}}')"


class FoundModel(NamedTuple):
    """Files of one model: the folder, and in it or beside it the weights."""

    name: str
    folder: Path
    weights: tuple[Path, ...]
    revision: str | None = None

    def describe(self) -> str:
        """One line that pins the model: its name, its revision and its weights' hashes."""
        parts = [self.name] if self.revision is None else [self.name, f"revision {self.revision}"]
        return ", ".join([*parts, *map(hash_line, self.weights)])


class NeededFiles(NamedTuple):
    """Files of a model: of each group the first that exists, and others that may be there."""

    groups: tuple[tuple[str, ...], ...]
    weights: tuple[str, ...]
    others: tuple[str, ...] = ()


def local_path(source: Source, *, field: str, hub_id: str) -> Path | None:
    """Folder or file on this machine that a model's name stands for; None for a hub id.

    Parameters
    ----------
    source : what the user named.
    field : of `ScoreModels`, for the message.
    hub_id : regular expression of a hub id.

    Raises
    ------
    FileNotFoundError : if it is neither: a path that is misspelt.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if isinstance(source, str) and re.fullmatch(hub_id, source):
        return None
    raise FileNotFoundError(
        f"{field} model {source} does not exist here, and it is no hub id such as "
        f"{getattr(DEFAULT_MODELS, field)}; correct it: {naming(field)}"
    )


def find_model(source: Source, *, field: str, files: NeededFiles) -> FoundModel:
    """Find a model of the Hugging Face hub or of a folder in the same layout.

    Parameters
    ----------
    source : hub id ``owner/name`` or ``owner/name@revision``; or a folder.
    field : of `ScoreModels`, for messages.
    files : what is needed of a repository.

    Raises
    ------
    FileNotFoundError : if a local folder does not exist.
    MissingWeightsError : if the folder has no weights; or the repository is not in the cache and
        cannot be had.
    """
    hub_id = r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?"
    folder = local_path(source, field=field, hub_id=hub_id)
    if folder is not None:
        return FoundModel(str(source), folder, _weights_in(folder, files, field=field))
    repo, _, revision = str(source).partition("@")
    found = [_first_file(repo, group, revision or None, field=field) for group in files.groups]
    commit = found[0].parent.name  # the rest is of the same commit, even if a branch moves
    weights = _first_file(repo, files.weights, commit, field=field)
    for name in files.others:
        _optional_file(repo, name, commit, field=field)
    return FoundModel(repo, weights.parent, (weights,), commit)


def load_pretrained(cls: type, folder: Path, *, unused: tuple[str, ...] = ()) -> torch.nn.Module:
    """Load a model of transformers from a folder, and refuse one of which weights are missing.

    Parameters
    ----------
    cls : its class, or the automatic one.
    folder : with config.json and weights.
    unused : parts of names of weights that scores do not depend on.

    Raises
    ------
    ValueError : if weights are missing; and what transformers raises.
    """
    model, report = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    lacking = sorted(
        key for key in report["missing_keys"] if not any(part in key for part in unused)
    )
    if lacking:
        raise ValueError(f"{len(lacking)} weights are missing, such as {lacking[0]}")
    return model


@contextmanager
def loading(found: FoundModel, *, field: str, kind: str) -> Iterator[None]:
    """Say of whatever goes wrong while a model is loaded that it is no such model.

    Parameters
    ----------
    found : where its files are.
    field : of `ScoreModels`.
    kind : what it should be.

    Raises
    ------
    MissingWeightsError : for any exception; transformers, safetensors, pickle and the code of a hub
        have each their own.
    """
    try:
        yield
    except Exception as error:
        raise MissingWeightsError(
            f"{field} weights: {found.folder} holds no {kind} that loads ({one_line(error)}); name "
            f"another folder: {naming(field)}"
        ) from error


def unreachable(source: Source, *, field: str, fix: str, reason: str | None = None) -> str:
    """One line for a model that cannot be had, with the fix.

    Parameters
    ----------
    source : the model's name.
    field : of `ScoreModels`.
    fix : what the user can do, where the last step is to name a folder.
    reason : what the network said; None where it must not be asked.
    """
    why = "and downloads are forbidden" if reason is None else f"and cannot be fetched ({reason})"
    return f"{field} weights {source} are not on this machine {why}; {fix}: {naming(field)}"


def hash_line(path: Path) -> str:
    """Name and hash of a file, such as ``model.safetensors sha256 0123456789abcdef``."""
    status = path.stat()
    digest = _sha256(path.resolve(), status.st_size, status.st_mtime_ns)
    return f"{path.name} sha256 {digest[:16]}"


class Remembered:
    """A function of signals that works out each signal once, known by its samples.

    A target that several codecs or prefixes are compared with, and a reference that is scored
    against itself, so cost one pass of a model.

    Parameters
    ----------
    compute : function of a signal (T,) and hashable arguments.
    most : results to keep; the oldest goes first.
    """

    def __init__(self, compute: Callable[..., Any], *, most: int = 20_000):
        self.compute = compute
        self.most = most
        self._results: OrderedDict[Hashable, Any] = OrderedDict()

    def __call__(self, sig: Tensor, *arguments: Hashable) -> Any:
        """Give the result for a signal (T,) on the CPU."""
        content = hashlib.blake2b(sig.contiguous().numpy().tobytes(), digest_size=16).digest()
        key = (content, *arguments)
        if key not in self._results:
            self._results[key] = self.compute(sig, *arguments)
            if len(self._results) > self.most:
                self._results.popitem(last=False)
        return self._results[key]


def _weights_in(folder: Path, files: NeededFiles, *, field: str) -> tuple[Path, ...]:
    for name in files.weights:
        if (folder / name).is_file():
            return (folder / name,)
    if shards := sorted(folder.glob("model-*-of-*.safetensors")):
        return tuple(shards)
    raise MissingWeightsError(
        f"{field} weights: {folder} holds no {' or '.join(files.weights)}; name another "
        f"folder: {naming(field)}"
    )


def _first_file(repo: str, names: tuple[str, ...], revision: str | None, *, field: str) -> Path:
    """First of ``names`` in the cache, or else on the hub."""
    for name in names:
        if (path := _cached(repo, name, revision)) is not None:
            return path
    for name in names:
        if (path := _downloaded(repo, name, revision, field=field)) is not None:
            return path
    raise MissingWeightsError(f"{field} weights: {repo} has no {' or '.join(names)}")


def _optional_file(repo: str, name: str, revision: str, *, field: str) -> None:
    if _cached(repo, name, revision) is None and not is_offline():
        _downloaded(repo, name, revision, field=field)


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    # Not hf_hub_download(local_files_only=True): version 2.4 asks the network even then.
    path = try_to_load_from_cache(repo, name, revision=revision)
    return Path(path) if isinstance(path, str) else None


_refused: dict[str, str] = {}  # repositories that gave no answer, which is not waited for twice


def _downloaded(repo: str, name: str, revision: str | None, *, field: str) -> Path | None:
    """Fetch one file; None if the repository has none of this name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    fix = f"fetch them with `hf download {repo}`, or name a local folder"
    if is_offline():
        raise MissingWeightsError(unreachable(repo, field=field, fix=fix))
    if repo not in _refused:
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError as error:
            _refused[repo] = one_line(error.__cause__ or error)
        except Exception as error:  # of an HTTP client, which one depends on the hub's version
            _refused[repo] = one_line(error)
    raise MissingWeightsError(unreachable(repo, field=field, fix=fix, reason=_refused[repo]))


def one_line(error: object) -> str:
    """First line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Hash of a file's content; size and time of change only tell its versions apart."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
