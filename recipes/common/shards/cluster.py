"""Fill a folder of shards on the machines of a Ray cluster that share it.

Ray Data hands out the shards, one at a time, to actors that each hold a model. They claim shards as
all processes do, so a cluster may even work beside processes that it knows nothing of.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from recipes.common.shards.build import ShardBuild
from recipes.common.shards.format import ShardError


def run_on_ray(
    make_build: Callable[[], ShardBuild],
    names: Sequence[str],
    *,
    workers: int,
    gpus_per_worker: float,
    on_shard: Callable[[], None],
) -> None:
    """Write shards on the cluster of ``RAY_ADDRESS``, or on this machine without one.

    Parameters
    ----------
    make_build : called once in each actor; can be pickled.
    names : of the shards that are missing.
    workers : actors.
    gpus_per_worker : GPUs that Ray keeps for each; 0 for none.
    on_shard : called here when a shard is there.

    Raises
    ------
    ShardError : if Ray is not installed, or an actor fails.
    """
    try:
        import ray
    except ImportError as error:
        raise ShardError(
            "--engine ray needs Ray Data; install it with pip install 'ray[data]', or leave "
            "--engine out to use this machine alone"
        ) from error
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
    written = items.map(
        _ShardWriter,
        fn_constructor_args=(make_build,),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus_per_worker,
    )
    try:
        for row in written.iter_rows():
            if row["error"]:
                raise ShardError(row["error"])
            on_shard()
    except ray.exceptions.RayError as error:
        raise ShardError(
            f"Ray: {str(error).strip().splitlines()[0]}; finished shards are kept: run the same "
            "command"
        ) from error


class _ShardWriter:
    """Actor that writes the shards that it is given; what the user can put right is a result.

    Ray would wrap an exception in a page of its own advice.
    """

    def __init__(self, make_build: Callable[[], ShardBuild]) -> None:
        self.make_build = make_build
        self.build: ShardBuild | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self.build = self.build or self.make_build()
            shard = next(shard for shard in self.build.shards if shard.name == row["name"])
            self.build.write(shard, on_batch=_nothing)
        except (ValueError, OSError) as error:
            return row | {"error": str(error)}
        return row | {"error": ""}


def _nothing() -> None:
    """Show no progress: the program that began the work does."""
