"""Tokens of a corpus, computed once and read by every task that learns from them.

``extractors`` turns signals into columns; ``plan`` divides a corpus into shards, ``journal`` keeps
what is finished of one, ``build`` fills a folder, ``format`` says what lies there, ``reader`` reads
it.
"""

from recipes.common.shards.build import build_shards
from recipes.common.shards.extractors import Extractor, SpeakerVectors, Tokens
from recipes.common.shards.format import ShardError
from recipes.common.shards.reader import Shards, open_shards

__all__ = [
    "Extractor",
    "ShardError",
    "Shards",
    "SpeakerVectors",
    "Tokens",
    "build_shards",
    "open_shards",
]
