"""Evaluation run folders in the format of recipes.evaluate, made by hand, tiny."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
HARDWARE = {"device": "Abacus", "processes": 1, "cpu_cores": 2, "torch_threads": 1}
ITEMS = [f"1089-{number}-0000" for number in range(4)]
CODECS = {
    "FocalCodec@50": {"token_rate": 50.0, "bitrate": 650.0, "codebook_size": 8192},
    "FocalCodec@12.5": {"token_rate": 12.5, "bitrate": 162.5, "codebook_size": 8192},
}


def write_evaluation(
    folder: Path,
    *,
    codec="FocalCodec@50",
    task="resynthesis",
    dataset="librispeech_test_clean",
    data=None,
    quality=0.9,
    items=ITEMS,
    samples=True,
    seconds=0.4,
    settings=None,
    not_computed=None,
    **metrics,
) -> Path:
    """Make a finished run; ``quality`` moves all scores, ``metrics`` replace what is recorded.

    ``data`` is what else ``dataset`` records: ``options``, ``seed``, ``hash``.
    """
    folder.mkdir(parents=True)
    write_run_json(folder, command=f"python -m recipes.evaluate {task} --codec {codec}")
    rows = [
        {
            "id": item,
            "duration": seconds,
            "speaker": item.split("-")[0],
            "language": "en",
            "ref_utmos": 4.0 + 0.01 * number,
            "hyp_utmos": round(4.2 * quality + 0.05 * number, 4),
            "hyp_dwer": round((1 - quality) * (1 + number % 2), 4),
            "hyp_dwer_words": 10 + number,
            "hyp_sim": round(quality + 0.01 * number, 4),
            "hyp_stoi": "" if number == 1 else round(quality - 0.02 * number, 4),
        }
        for number, item in enumerate(items)
    ]
    with (folder / "utterances.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    facts = {"name": codec, "model_id": "folder/x", "sample_rate": RATE, "num_codebooks": 1}
    facts |= {"sample_rate_output": RATE, "embedding_dim": 13, "parameters": 142_000_000}
    content = {
        "task": task,
        "codec": facts | CODECS.get(codec, CODECS["FocalCodec@50"]),
        "dataset": {"name": dataset, "utterances": len(items), "hours": 0.01} | (data or {}),
        "scores": {
            name: score_of(rows, name)
            for name in ("ref_utmos", "hyp_utmos", "hyp_dwer", "hyp_sim", "hyp_stoi")
        }
        | {"rtf": {"mean": 21.4, "low": 20.0, "high": 22.0, "utterances": len(items)}},
        "code_usage": {
            "code_usage": 0.75,
            "normalised_entropy": 0.9,
            "normalised_entropy_used": 0.95,
            "used_codes": 6144,
            "num_tokens": 1000,
        },
        "settings": settings or {},
        "models": {"utmos": "utmos22_strong"},
        "not_computed": not_computed or {},
        "failures": [{"id": items[-1], "metric": "stoi", "reason": "too short"}],
    }
    (folder / "metrics.json").write_text(json.dumps(content | metrics))
    counts = [math.ceil(1000 / rank**1.2) for rank in range(1, 97)] + [0] * 32
    (folder / "code_counts.json").write_text(json.dumps({"counts": [counts]}))
    if samples:
        for number, item in enumerate(items):
            write_samples(folder, item, number, quality, seconds)
    return folder


def write_plain(folder: Path, **about) -> Path:
    """Make a run with two samples but without figures, which take the longest."""
    run = write_evaluation(folder, **{"items": ["a", "b"], "scores": {}, "seconds": 0.05} | about)
    (run / "code_counts.json").unlink()
    return run


def write_run_json(folder: Path, *, command: str) -> None:
    start = {"time": "2026-01-01T00:00:00+00:00", "command": command, "commit": "c0ffee"}
    start |= {"modified": False, "hardware": HARDWARE}
    (folder / "run.json").write_text(json.dumps(start | {"seed": 7, "starts": [start]}))


def score_of(rows, name):
    weights = [row.get(f"{name}_words", 1) for row in rows]
    pairs = [
        (row[name], weight) for row, weight in zip(rows, weights, strict=True) if row[name] != ""
    ]
    mean = sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
    values = [value for value, _ in pairs]
    return {"mean": mean, "low": min(values), "high": max(values), "utterances": len(pairs)}


def write_samples(folder: Path, item: str, number: int, quality: float, seconds: float) -> None:
    """Write reference and decoded audio: harmonics of a pitch of the item's own, and noise."""
    place = folder / "samples" / item.replace("/", "--")
    place.mkdir(parents=True)
    time = np.arange(round(RATE * seconds)) / RATE
    pitch = 110 + 25 * number + 20 * np.sin(2 * np.pi * 2 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    ref = sum(np.sin(k * phase) / k for k in range(1, 25)) * 0.15 * (1 + np.sin(9 * time)) / 2
    noise = np.random.default_rng(number).standard_normal(len(time)) * 0.1 * (1 - quality)
    soundfile.write(place / "ref.wav", ref, RATE)
    soundfile.write(place / "hyp.wav", quality * ref + noise, RATE)


def write_unfinished(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_run_json(folder, command="python -m recipes.evaluate resynthesis")
    return folder


def write_runs(folder: Path) -> Path:
    """Two codecs on two test sets, one of them twice, streaming, speed, one run unfinished."""
    reason = "UTMOS needs its weights; pass --utmos_folder"
    for codec, quality in (("FocalCodec@50", 0.95), ("FocalCodec@12.5", 0.8)):
        name = codec.replace("@", "")
        write_evaluation(folder / "clean" / name, codec=codec, quality=quality)
        scores = {"hyp_dnsmos_ovrl": {"mean": 3.1, "low": 3.0, "high": 3.2, "utterances": 4}}
        write_evaluation(
            folder / "noisy" / name,
            codec=codec,
            dataset="voicebank",
            quality=quality - 0.1,
            not_computed={"utmos": reason, "dwer": "Whisper is not here"},
            scores=scores,
        )
    write_evaluation(
        folder / "other" / "ours", codec="Ours <b>", dataset="librispeech_test_clean", quality=0.85
    )
    for size in (2000, 8000):
        write_evaluation(
            folder / "streaming" / f"{size}",
            task="streaming",
            settings={"chunk_size": size},
            quality=0.6 + size / 40000,
            samples=False,
        )
    speed = {"parameters": {"mean": 142e6}, "macs_per_second": {"mean": 9.1e9}}
    speed |= {"rtf_encode": {"mean": 31.0}, "rtf_decode": {"mean": 95.5}, "rtf": {"mean": 23.4}}
    write_evaluation(folder / "speed", task="speed", dataset=None, samples=False, scores=speed)
    write_unfinished(folder / "unfinished")
    return folder
