"""Read a folder of shards: rows of a subset by utterance, tokens as views of a file's data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import Tensor

from recipes.common.shards.format import (
    CODEBOOKS,
    ShardError,
    damaged_shard,
    read_description,
    shard_name,
    shard_path,
)


class Shards:
    """Finished shards of one corpus.

    Parameters
    ----------
    folder : of `recipes.common.shards.build_shards`.
    content : of its ``tokens.json``.

    Attributes
    ----------
    description : of the extractor: ``name``, ``weights``, ``sample_rate``, and of a codec
        ``token_rate``, ``num_codebooks``, ``codebook_size``, ...
    subsets : their names.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self.folder = folder
        self.description: dict[str, Any] = dict(content["extractor"])
        self._plans: dict[str, dict[str, Any]] = content["subsets"]

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets."""
        return tuple(self._plans)

    @property
    def codebooks(self) -> Tensor | None:
        """(K, size, H) float32 vectors of the tokens; None where the extractor has none."""
        path = self.folder / CODEBOOKS
        return load_file(path)["codebooks"] if path.exists() else None

    def read(self, subset: str) -> dict[str, dict[str, Any]]:
        """Rows of a subset by id, in the order of their ids.

        Parameters
        ----------
        subset : one of `subsets`.

        Returns
        -------
        Rows with ``duration`` (s), the labels of the corpus (None where unknown), and what was
        extracted: ``toks`` (L, K), and ``target_toks`` and ``target_2_toks`` where the utterance
        has targets, unsigned integers; or ``vector`` (H,) float32. Arrays are views that cannot be
        written to: ``torch.from_numpy(toks.astype("int64"))`` copies.

        Raises
        ------
        ShardError : if there is no such subset, or a shard is damaged.
        """
        if subset not in self._plans:
            raise ShardError(
                f"{self.folder} has no subset {subset}, only {', '.join(self.subsets)}; run "
                "recipes.tokenize with it"
            )
        rows: dict[str, dict[str, Any]] = {}
        for path in _paths(self.folder, subset, self._plans[subset]):
            try:
                rows |= _rows(pq.read_table(path, page_checksum_verification=True))
            except (OSError, pa.ArrowException) as error:
                raise damaged_shard(path, error) from error
        return rows


def open_shards(folder: str | Path) -> Shards:
    """Open a folder whose shards are all there.

    Raises
    ------
    ShardError : if it holds no shards, or not all of them.
    """
    folder = Path(folder)
    content = read_description(folder)
    if content is None:
        raise ShardError(
            f"{folder} holds no shards; make them with python -m recipes.tokenize {folder}"
        )
    paths = [
        path for name, plan in content["subsets"].items() for path in _paths(folder, name, plan)
    ]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ShardError(
            f"{folder}: {len(missing)} of {len(paths)} shards are missing ({missing[0]}, ...); run "
            "the same recipes.tokenize command again: it goes on where it was"
        )
    return Shards(folder, content)


def _paths(folder: Path, subset: str, plan: Mapping[str, Any]) -> list[Path]:
    count = plan["shards"]
    return [shard_path(folder, shard_name(subset, number, count)) for number in range(count)]


def _rows(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Rows of one shard by id."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    ids = columns.pop("id").to_pylist()
    widths = columns.pop("num_codebooks", None)
    widths = None if widths is None else widths.to_pylist()
    rows: list[dict[str, Any]] = [{} for _ in ids]
    for name, column in columns.items():
        if not pa.types.is_list(column.type):
            for row, value in zip(rows, column.to_pylist(), strict=True):
                row[name] = value
            continue
        for index, values in _views(column):
            rows[index][name] = values if widths is None else values.reshape(-1, widths[index])
    return dict(zip(ids, rows, strict=True))


def _views(column: pa.ListArray) -> list[tuple[int, np.ndarray]]:
    """Indexes of the rows that are not null, and their values, without a copy."""
    values = column.values.to_numpy(zero_copy_only=True)
    ends = column.offsets.to_numpy().tolist()
    valid = column.is_valid().to_pylist()
    return [(i, values[ends[i] : ends[i + 1]]) for i, is_valid in enumerate(valid) if is_valid]
