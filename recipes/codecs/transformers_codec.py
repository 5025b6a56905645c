"""What codecs of transformers have in common: how they are loaded, and what their config says."""

from collections.abc import Sequence
from os import PathLike

import torch

from recipes.codecs.codec import Codec
from recipes.codecs.sources import check_num_codebooks, find_files, import_package, model_id


class TransformersCodec(Codec):
    """A codec of transformers, of whose codebooks the first are used.

    A subclass has a ``name`` to print, for None, and the ``architecture``, the name of its class in
    transformers; it says what checkpoints it takes and refuses.
    """

    architecture: str

    def __init__(
        self, *, checkpoint: str | PathLike[str], num_codebooks: int, name: str | None = None
    ) -> None:
        super().__init__()
        self.model = load_transformers(self.architecture, checkpoint)
        self.name, self.model_id = name or self.name, model_id(checkpoint)
        check_num_codebooks(num_codebooks, choices=self._choices(), name=self.name)
        config = self.model.config
        self.sample_rate = self.sample_rate_output = config.sampling_rate
        self.token_rate = self._token_rate()
        self.num_codebooks, self.codebook_size = num_codebooks, config.codebook_size

    def _choices(self) -> Sequence[int]:
        """Give the numbers of codebooks that the checkpoint can be used with."""
        raise NotImplementedError

    def _token_rate(self) -> float:
        # Not their frame_rate, which is rounded up.
        return self.model.config.sampling_rate / self.model.config.hop_length


def load_transformers(model: str, checkpoint: str | PathLike[str]) -> torch.nn.Module:
    """Load a codec of transformers in float32 from safetensors, frozen and in evaluation mode.

    Parameters
    ----------
    model : name of its class, such as ``EncodecModel``.
    checkpoint : local folder or hub id.

    Raises
    ------
    FileNotFoundError : see `find_files`.
    ValueError : if the files are of another model or damaged; weights that a checkpoint lacks are
        refused, where transformers would make them up.
    """
    transformers = import_package("transformers", install="pip install 'transformers>=5.17,<6'")
    config = find_files(checkpoint, ["config.json", "model.safetensors"])[0]
    try:
        loaded, report = getattr(transformers, model).from_pretrained(
            config.parent,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers passes on whatever its readers raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint} is no checkpoint of {model}: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{checkpoint} is no checkpoint of {model}: {len(missing)} weights are missing, "
            f"such as {missing[0]}"
        )
    return loaded.eval().requires_grad_(False)
