"""Work units of a feature cache: which process computes which shard, told by the file system alone.

``plan.json`` lists the utterances of each shard. It is written whole, under a lock, and only ever
grows, so that every process sees the same units. A unit is claimed with ``flock`` on a file of its
own: the kernel frees it when its holder dies, however it dies. Over NFS, flock reaches other
machines from version 4 on (or Linux 2.6.12 with a lock daemon; not with ``local_lock``).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from recipes.common.disk import publish_text, remove_unpublished
from recipes.common.feature_cache.format import CacheError, shard_numbers
from recipes.common.files import locked_file

UNIT_BYTES = 256 * 2**20
Units = dict[int, list[str]]


@contextmanager
def locked(folder: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock of the cache, over all processes; without ``wait`` False if another has it."""
    with locked_file(folder / "locks" / name, wait=wait) as is_held:
        yield is_held


def read_units(folder: Path) -> Units:
    """Utterances of each unit by the number of its shard; empty without a plan."""
    path = folder / "plan.json"
    try:
        units = json.loads(path.read_bytes())["units"]
        return {int(number): [str(key) for key in ids] for number, ids in units.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it and run the same "
            "command: finished shards are kept"
        ) from error


def add_units(folder: Path, sizes: Mapping[str, int], *, unit_bytes: int = UNIT_BYTES) -> Units:
    """Append units for the utterances that no unit has yet; give all units.

    The same utterances give the same units: they are taken in the order of their ids, and a unit is
    closed before it would exceed ``unit_bytes``.

    Parameters
    ----------
    folder : of the cache.
    sizes : bytes of features by utterance.
    unit_bytes : limit of a unit; a longer utterance has one of its own.
    """
    with locked(folder, "plan"):
        units = read_units(folder)
        planned = {key for ids in units.values() for key in ids}
        new = sorted(key for key in sizes if key not in planned)
        if new:
            number = max([-1, *units, *shard_numbers(folder)]) + 1
            units |= enumerate(_chunks(new, sizes, unit_bytes), start=number)
            _write_units(folder, units)
    return units


def take_unit(folder: Path, number: int, wanted: Mapping[str, object]) -> list[str]:
    """Utterances of a unit that the caller has locked; what is not ``wanted`` moves to a new unit.

    So a process that knows other utterances than the one that made the plan (another subset, a
    corpus from which something was removed) never computes half a unit.
    """
    with locked(folder, "plan"):
        units = read_units(folder)
        ids = units.get(number, [])
        mine = [key for key in ids if key in wanted]
        others = [key for key in ids if key not in wanted]
        if mine and others:
            units[number] = mine
            units[max([*units, *shard_numbers(folder)]) + 1] = others
            _write_units(folder, units)
    return mine


def _chunks(ids: list[str], sizes: Mapping[str, int], unit_bytes: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    total = 0
    for key in ids:
        if chunk and total + sizes[key] > unit_bytes:
            yield chunk
            chunk, total = [], 0
        chunk.append(key)
        total += sizes[key]
    if chunk:
        yield chunk


def _write_units(folder: Path, units: Units) -> None:
    lines = ",\n".join(f'"{number}": {json.dumps(ids)}' for number, ids in sorted(units.items()))
    text = f'{{"units": {{\n{lines}\n}}}}\n'
    remove_unpublished(folder, "plan.json")
    publish_text(folder / "plan.json", text)
