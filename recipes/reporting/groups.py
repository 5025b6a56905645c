"""Runs by task and test set: only those of the same utterances are compared with each other."""

from collections.abc import Mapping, Sequence

from recipes.reporting.runs import EvaluatedSet, Evaluation, told_apart

TASKS = {
    "resynthesis": "Speech resynthesis",
    "voice_conversion": "Voice conversion",
    "streaming": "Streaming",
    "asr": "Speech recognition on tokens",
    "speaker": "Speaker identification on tokens",
    "emotion": "Emotion recognition on tokens",
    "enhancement": "Speech enhancement on tokens",
    "separation": "Speech separation on tokens",
    "tts": "Text to speech on tokens",
}


def grouped(runs: Sequence[Evaluation]) -> dict[EvaluatedSet, list[Evaluation]]:
    """Sort runs by task and test set, in the order of `TASKS`; speed has none and is left out."""
    tasks = list(TASKS)
    order = sorted(
        (run for run in runs if run.task != "speed"),
        key=lambda run: (
            tasks.index(run.task) if run.task in tasks else len(tasks),
            run.task,
            run.dataset_name or "",
            str(run.folder),
        ),
    )
    groups: dict[EvaluatedSet, list[Evaluation]] = {}
    for run in order:
        groups.setdefault(run.test_set, []).append(run)
    return groups


def set_titles(groups: Mapping[EvaluatedSet, Sequence[Evaluation]]) -> dict[EvaluatedSet, str]:
    """Name of each group's test set, and what tells it from namesakes of the same task.

    That is what the options and the seed of their data differ in, and where they do not the folder
    of the first run.
    """
    titles: dict[EvaluatedSet, str] = {}
    for task in {test_set.task for test_set in groups}:
        own = [test_set for test_set in groups if test_set.task == task]
        names = told_apart(
            (run.folder, test_set.name or "no test set", _options(run))
            for test_set in own
            for run in groups[test_set][:1]
        )
        titles |= {test_set: names[groups[test_set][0].folder] for test_set in own}
    return titles


def _options(run: Evaluation) -> dict:
    seed = run.dataset.get("seed")
    options = run.dataset.get("options") or {}
    return options if seed is None else {**options, "seed": seed}
