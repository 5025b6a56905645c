"""Where a run's results come from, read from its folder: nodes of its YAML, and its commands.

Only JSON and YAML nodes are read; nothing is built or executed, and nothing is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ruamel.yaml

from recipes.common.run_folder import hardware_line, read_description

NOT_RECORDED = "not recorded"


class RunFiles(NamedTuple):
    """What a run folder says: nodes of ``hyperparams.yaml``, and ``run.json``.

    The description is None where there is no run, such as beside weights that came from elsewhere.
    """

    folder: Path
    nodes: Mapping[str, Any]
    description: dict[str, Any] | None

    @property
    def seed(self) -> int | None:
        """Seed of the YAML, which ``run.json`` repeats."""
        return (self.description or {}).get("seed", self.nodes.get("seed"))

    @property
    def processes(self) -> int:
        """How many processes it was begun with, each of which takes a batch of its own."""
        hardware = self.description["starts"][0].get("hardware")
        return 1 if hardware is None else hardware["processes"]


class Start(NamedTuple):
    """One command that a result comes from, as text to print."""

    role: str
    seed: str
    command: str
    commit: str
    hardware: str


def read_run_files(folder: Path) -> RunFiles:
    """Read a run folder.

    Raises
    ------
    ValueError : if one of its files is damaged.
    """
    description = read_description(folder)
    if description is None:
        return RunFiles(folder, {}, None)
    if missing := sorted({"encoder", "starts"} - set(description)):
        raise ValueError(f"{folder / 'run.json'} has no key {', '.join(missing)}")
    path = folder / "hyperparams.yaml"
    try:
        nodes = ruamel.yaml.YAML().load(path)  # tags stay text
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has a run.json but no hyperparams.yaml") from error
    except (ruamel.yaml.error.YAMLError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it, or leave its folder out"
        ) from error
    if not isinstance(nodes, Mapping):
        raise ValueError(f"{path} must hold the keys of a run, got {type(nodes).__name__}")
    return RunFiles(folder, nodes, description)


def starts_of(run: RunFiles, role: str) -> list[Start]:
    """Commands of one run folder; restarts by the same command, commit and hardware count once."""
    if run.description is None:
        missing = f"{NOT_RECORDED}: no run.json in {run.folder}"
        return [Start(role, NOT_RECORDED, missing, NOT_RECORDED, NOT_RECORDED)]
    # Older versions kept commit and hardware of the last start alone, beside the list.
    last = {key: run.description.get(key) for key in ("commit", "modified", "hardware")}
    *earlier, latest = run.description["starts"]
    seed = NOT_RECORDED if run.seed is None else str(run.seed)
    starts = [
        Start(role, seed, start["command"], _commit(start), _hardware(start.get("hardware")))
        for start in (*earlier, last | latest)
    ]
    return list(dict.fromkeys(starts))


def _commit(start: Mapping[str, Any]) -> str:
    commit = start.get("commit")
    if commit is None:
        return NOT_RECORDED
    return f"{commit} (modified)" if start.get("modified") else commit


def _hardware(hardware: Mapping[str, Any] | None) -> str:
    return NOT_RECORDED if hardware is None else hardware_line(hardware)
