"""Command line and YAML of a run: overrides that are taken as they are meant, or refused.

HyperPyYAML and SpeechBrain's parser lose some overrides without a word; none is lost here.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ruamel.yaml
import speechbrain as sb
from hyperpyyaml import resolve_references
from ruamel.yaml.comments import CommentedMap


def parse_command_line(argv: Sequence[str]) -> tuple[str, Any, str]:
    """SpeechBrain's parser, made strict.

    Returns
    -------
    YAML file, run options, overrides as YAML text. A run option that is also a key of the YAML is
    an override as well, so that the saved ``hyperparams.yaml`` holds the value that was used.

    Raises
    ------
    ValueError : if an override would silently be lost.
    """
    for argument in argv:
        if argument.count("=") > int(argument.startswith("--")):
            raise ValueError(
                f"argument {argument!r} has an '=' inside its value, where SpeechBrain would cut "
                "it; choose a name without '='"
            )
    param_file, run_opts, overrides = sb.parse_arguments(list(argv))
    yaml = ruamel.yaml.YAML()
    with open(param_file, encoding="utf-8") as file:
        main = yaml.load(file)
    replacements = (yaml.load(overrides) if overrides else None) or {}
    for key, value in replacements.items():
        _refuse_lost_override(key, value, main)
    options = run_opts.as_dict()
    for key in sorted(run_opts.overridden_args & set(main)):
        overrides += f"\n{key}: {options[key]}"
    return param_file, run_opts, overrides


def resolved_hash(param_file: str, overrides: str, *, without: Collection[str]) -> str:
    """Short hash of the resolved YAML, some keys left out.

    It is taken of the parsed nodes, so comments, spacing and spellings of a number do not count.

    Parameters
    ----------
    param_file : main YAML.
    overrides : YAML text, as `parse_command_line` gives it.
    without : keys that do not count; those that the main YAML lacks are ignored.
    """
    yaml = ruamel.yaml.YAML()
    with open(param_file, encoding="utf-8") as file:
        main = yaml.load(file)
        file.seek(0)
        neutral = (yaml.load(overrides) if overrides else None) or CommentedMap()
        neutral.update({key: None for key in without if key in main})
        resolved = yaml.load(resolve_references(file, neutral).getvalue())
    return hashlib.sha256(canonical(resolved).encode()).hexdigest()[:16]


def canonical(node: Any) -> str:
    """One text for all spellings of a YAML node: its tag and its typed value, keys in order."""
    tag = getattr(node, "tag", None)
    name = tag.value or "" if tag is not None else ""
    if isinstance(node, Mapping):
        items = (f"{key}: {canonical(value)}" for key, value in sorted(node.items()))
        return f"{name}{{{', '.join(items)}}}"
    if isinstance(node, Sequence) and not isinstance(node, str):
        return f"{name}[{', '.join(map(canonical, node))}]"
    value = getattr(node, "value", node)  # a tagged scalar
    return f"{name}{float(value)!r}" if isinstance(value, float) else f"{name}{value!r}"


def _refuse_lost_override(key: str, value: Any, main: CommentedMap) -> None:
    """Raise where HyperPyYAML would keep the old class or file without a word (its issue 28)."""
    if key not in main:
        return  # load_hyperpyyaml names the unknown key
    tag = str(getattr(value, "tag", None) and value.tag.value or "")
    if isinstance(value, CommentedMap) and tag.startswith("!"):
        raise ValueError(
            f"--{key} is the tagged mapping {tag}, of which HyperPyYAML would keep the arguments "
            "and drop the class; put "
            f"it into a file and pass --{key} '!include:FILE.yaml' (path relative to the main YAML)"
        )
    block = getattr(main[key], "tag", None)
    if isinstance(value, str) and block is not None and (block.value or "").startswith("!include"):
        raise ValueError(
            f"--{key} is the plain text {value!r} where a block belongs; pass "
            f"--{key} '!include:{value}' (path relative to the main YAML)"
        )
    if isinstance(value, CommentedMap) and not isinstance(main[key], CommentedMap):
        raise ValueError(
            f"--{key} is a mapping, but {key} is an include of a block file, whose arguments "
            "cannot be overridden one by "
            f"one; copy the file, change it and pass --{key} '!include:COPY.yaml'"
        )


def block_name(param_file: str, overrides: str, key: str) -> str:
    """Name of the block file that a key includes, without folders and suffix.

    Raises
    ------
    ValueError : if the key is no include.
    """
    yaml = ruamel.yaml.YAML()
    with open(param_file, encoding="utf-8") as file:
        keys = yaml.load(file)
    keys.update((yaml.load(overrides) if overrides else None) or {})
    tag = getattr(keys.get(key), "tag", None)
    kind, _, file_name = (tag.value or "" if tag is not None else "").partition(":")
    if kind != "!include":
        raise ValueError(f"{key} must be a block file: pass --{key} '!include:FILE.yaml'")
    return Path(file_name).stem
