"""Form of a folder of shards: Parquet files that any reader of Parquet takes, and what they are.

::

    train-00000-of-00012.parquet   rows in the order of their ids; ``datasets`` finds the subsets
    tokens.json                    version, extractor, columns, and for each subset its plan
    codebooks.safetensors          vectors of the tokens, where the extractor has them
    bad_files.tsv                  path and reason of what has no row
    .parts/, .locks/               finished batches of unfinished shards; what claims are made on
    .manifests/                    of recipes.tokenize, with the bad files that headers show

Columns: ``id``, ``duration`` in seconds, those of the extractor (lists are flat: frame after frame,
the codebooks of a frame side by side), and the labels that the corpus has, null where unknown.

A shard appears whole; its metadata say what it was made of (``origin``) and why utterances have no
row (``bad_files``). Tokens are stored byte after byte (BYTE_STREAM_SPLIT) and compressed (zstd):
13.5 bits for one of 8192 equally frequent codes in a shard of one hour at 50 Hz, where a dictionary
takes 14.0, plain integers 18.3 and packed bits, which no reader of Parquet knows, 13. Real tokens
are not equally frequent and repeat each other: 12.4 bits (99 thousand of a small log-mel codec).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.common.disk import publish_text

VERSION = 1
LABELS = ("text", "language", "speaker", "emotion")
DESCRIPTION = "tokens.json"
CODEBOOKS = "codebooks.safetensors"
BAD_FILES = "bad_files.tsv"
_BAD, _ORIGIN = b"bad_files", b"origin"  # keys of a shard's metadata


class ShardError(ValueError):
    """Whatever keeps shards from being made or used, with what to do about it."""


def shard_name(subset: str, number: int, count: int) -> str:
    """Name of a shard's file without its suffix."""
    return f"{subset}-{number:05d}-of-{count:05d}"


def shard_path(folder: Path, name: str) -> Path:
    """File of a shard."""
    return folder / f"{name}.parquet"


def make_schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Make the schema of a shard from its columns."""
    return pa.schema([pa.field(name, type) for name, type in columns.items()])


def make_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table; what a row lacks is null."""
    columns = [pa.array([row.get(field.name) for row in rows], type=field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def with_notes(table: pa.Table, *, bad: Mapping[str, str], origin: str) -> pa.Table:
    """Table that also says which utterances have no row, and why, and what it was made of."""
    content = json.dumps(dict(sorted(bad.items())), ensure_ascii=False)
    return table.replace_schema_metadata({_BAD: content.encode(), _ORIGIN: origin.encode()})


def bad_of(schema: pa.Schema) -> dict[str, str]:
    """Reasons by id of the utterances that have no row."""
    return json.loads((schema.metadata or {}).get(_BAD, b"{}"))


def origin_of(schema: pa.Schema) -> str:
    """Say what a table was made of: `recipes.common.shards.plan.origin`."""
    return (schema.metadata or {}).get(_ORIGIN, b"").decode()


def write_shard(file: BinaryIO, table: pa.Table) -> None:
    """Write a table as one row group; the same table gives the same bytes."""
    lists = [field.name for field in table.schema if pa.types.is_list(field.type)]
    pq.write_table(
        table,
        file,
        row_group_size=max(1, len(table)),
        compression="zstd",
        compression_level=19,  # real tokens become 15 % smaller than at 3, in less than 0.1 s
        use_dictionary=[name for name in table.column_names if name not in lists],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in lists},
        write_page_checksum=True,
    )


def read_metadata(path: Path) -> pq.FileMetaData:
    """Read what a finished shard says of itself; ShardError if it is damaged."""
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise damaged_shard(path, error) from error


def damaged_shard(path: Path, error: Exception) -> ShardError:
    """Error of a shard that cannot be read, with what to do."""
    return ShardError(
        f"{path} is damaged ({error}); remove it and run the same recipes.tokenize command: only "
        "it is computed again"
    )


def read_description(folder: Path) -> dict[str, Any] | None:
    """Content of ``tokens.json``; None if the folder holds no shards.

    Raises
    ------
    ShardError : if it is damaged or of another version.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_bytes())
        version = content["version"]
        known = {"extractor", "shard_minutes", "columns", "subsets"} <= set(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShardError(f"cannot read {path}: {error.strerror}; choose another folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it and run the same "
            "command: finished shards are kept"
        ) from error
    if version != VERSION or not known:
        raise ShardError(
            f"{folder} holds shards of version {version}, and version {VERSION} is needed; choose "
            "another folder or remove it"
        )
    return content


def write_description(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``tokens.json``."""
    publish_text(folder / DESCRIPTION, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
