"""Features of the frozen encoder, computed once and read from the disk in training.

``format`` says what lies on the disk, ``reader`` reads it; ``plan`` tells what is missing,
``units`` shares the work among processes, ``encode`` does one unit of it, ``build`` all of it.
"""

from recipes.common.feature_cache.build import build_cache
from recipes.common.feature_cache.format import CacheError, describe_encoder
from recipes.common.feature_cache.reader import FeatureCache

__all__ = ["CacheError", "FeatureCache", "build_cache", "describe_encoder"]
