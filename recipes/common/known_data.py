"""What a run knows of its data: the manifests in its folder, which it has to find again.

Trainings and evaluations write their manifests anew at every start (`recipes.common.manifests`) and
compare them with those that an earlier start has left.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from recipes.common.corpus_files import SUBSETS
from recipes.common.files import write_text


def manifest_name(subset: str) -> str:
    """File name of a subset's manifest in a run folder."""
    return f"{subset}.json"


def read_data_files(folder: Path) -> dict[str, str]:
    """Texts of manifests and ``bad_files.tsv``, as far as the folder has them, by file name."""
    paths = [folder / name for name in (*map(manifest_name, SUBSETS), "bad_files.tsv")]
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.exists()}


def refuse_changed(folder: Path, *, earlier: Mapping[str, str], hint: str) -> None:
    """Raise ValueError if the folder's manifests are not the earlier ones, which are put back.

    Parameters
    ----------
    folder : of the run.
    earlier : what `read_data_files` gave before the manifests were written anew.
    hint : what else can be done than to put the data back.
    """
    found = read_data_files(folder)
    changes = []
    for subset in SUBSETS:
        before, now = (
            json.loads(texts.get(manifest_name(subset), "{}")) for texts in (earlier, found)
        )
        changes += [
            _listed(f"{subset} lost", before.keys() - now.keys()),
            _listed(f"{subset} gained", now.keys() - before.keys()),
            _listed(
                f"{subset} has changed", (k for k in before if k in now and before[k] != now[k])
            ),
        ]
    changes = [change for change in changes if change is not None]
    if not changes:
        return
    known = earlier.get("bad_files.tsv", "").splitlines()
    bad = [row for row in found["bad_files.tsv"].splitlines() if row not in known]
    if bad:
        changes.append("left out: " + ", ".join(bad[:3]).replace("\t", ": "))
    for name, text in earlier.items():
        write_text(folder / name, text)
    raise ValueError(
        f"the data are not those that the run in {folder} began with: {'; '.join(changes)}. Put "
        f"them back, or {hint}"
    )


def _listed(what: str, ids: Iterable[str]) -> str | None:
    ids = sorted(ids)
    shown = ", ".join(ids[:3]) + ", ..." * (len(ids) > 3)
    return f"{what} {len(ids)} utterances ({shown})" if ids else None
