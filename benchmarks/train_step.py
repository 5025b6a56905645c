"""One training step of each stage: as published, and ours without and with the feature cache.

    python -m benchmarks.train_step --audio FOLDER --batch 16 --threads 1 --repeats 3

The sides run in this process, alternate, start from the same weights and get the same utterances;
their losses at the first step are printed and should agree. The published steps are those of
`benchmarks.published_steps`, ours the Brains' own. Loading audio is in no step, with one exception:
the step from the cache reads its features and segments from the disk, in this process.

The quantizer stage takes ``--batches`` random batches in turn, and the rows "similar lengths" the
same utterances in as many batches of similar length, as ``batch_seconds`` makes them of a corpus;
seconds are the mean over the batches, as each does one step.

Peak memory is that of a process of its own for each side, above what it held when it started:
weights, optimizer states and one step, on the batch that takes most with its padding.

Weights are random. Without ``--audio`` the signal is synthetic and no speech.
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from torch import Tensor, nn

from benchmarks.measuring import PartOfRuns, held_bytes, in_child, machine, measure, peak_bytes
from benchmarks.published_steps import (
    DTYPES,
    ENCODER_SPEED,
    Losses,
    PublishedDecoderStep,
    PublishedQuantizerStep,
    PublishedStep,
    settle_spectral_norms,
)
from benchmarks.subjects import (
    SAMPLE_RATE,
    Entries,
    describe,
    drawn_utterances,
    padded_samples,
    plain_encoder,
    rather_long,
    similar_lengths,
    synthetic_utterances,
)
from recipes.common.crops import Crops
from recipes.common.dataio import SigDataset, collate
from recipes.common.feature_cache import FeatureCache, build_cache, describe_encoder
from recipes.common.fingerprint import fingerprint
from train_decoder import DecoderBrain
from train_quantizer import QuantizerBrain

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"decoder": (DecoderBrain, "vocos.yaml"), "quantizer": (QuantizerBrain, "bsq.yaml")}
GROUP = 4  # segments of an utterance, where fewer utterances are encoded
SMALL_ENCODER = """!new:focalcodec.wavlm.WavLM
hidden_dims: [16, 16, 16, 16, 16, 16, 16]
num_layers: 2
dim: 32
ffn_dim: 48
num_heads: 2
num_buckets: 32
max_distance: 80
conv_pos: 16
conv_pos_groups: 2
"""
SMALL_SIZES = {
    "decoder": "discriminator: !include:demo/discriminator.yaml\n",
    "quantizer": "hidden_dims: [24, 16, 16]\n",
}


class Variant(NamedTuple):
    """One side of the comparison."""

    published: bool = False
    crops: int = 1  # segments of each encoded utterance
    cached: bool = False
    sorted: bool = False  # batches of similar length
    recomputes: bool = False  # activations

    @property
    def same_batch(self) -> bool:
        """Whether the first batch, and so its losses, are those of the published side."""
        return self.crops == 1 and not self.sorted


VARIANTS = {
    "decoder": {
        "as published": Variant(published=True),
        "ours": Variant(),
        f"ours, {GROUP} crops": Variant(crops=GROUP),
        "ours, cached": Variant(cached=True),
    },
    "quantizer": {
        "as published": Variant(published=True),
        "ours": Variant(),
        "ours, cached": Variant(cached=True),
        "ours, similar lengths": Variant(sorted=True),
        "ours, cached, similar lengths": Variant(cached=True, sorted=True),
        "ours, both, recomputing": Variant(cached=True, sorted=True, recomputes=True),
    },
}
NAME_WIDTH = 30


class Setting(NamedTuple):
    """What all sides of a stage have in common.

    ``batches`` are those of the published side. ``folder`` is a temporary one with the feature
    cache in ``cache``.
    """

    stage: str
    batches: Sequence[Entries]
    folder: Path
    device: str = "cpu"
    precision: str = "fp32"
    small: bool = False
    threads: int = 1


class Row(NamedTuple):
    """A measured side; ``peak`` in bytes or None, ``losses`` those of the first step."""

    name: str
    seconds: float
    peak: int | None
    losses: dict[str, float]
    same_batch: bool = True


class OurStep:
    """Training step of a stage's Brain, outside of its loop.

    Parameters
    ----------
    hparams : of the stage's YAML.
    setting : device and precision.
    """

    def __init__(self, hparams: dict[str, Any], setting: Setting) -> None:
        self.hparams = hparams
        self.brain = STAGES[setting.stage][0](
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts={
                "device": setting.device,
                "precision": setting.precision,
                "noprogressbar": True,
            },
            checkpointer=hparams["checkpointer"],
        )
        self.brain.loaders[sb.Stage.TRAIN] = [None]  # an epoch of one batch
        self.brain.step = 1
        self.brain.on_fit_start()
        self.brain.modules.train()
        self.encoder = self.brain.encoder

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers by name."""
        return self.brain.optimizers_dict

    def start_anew(self, state: dict[str, Tensor]) -> None:
        """Take these weights, and forget what the optimizers know."""
        self.brain.modules.load_state_dict(state)
        for optimizer in self.optimizers.values():
            optimizer.state.clear()

    def __call__(self, batch: PaddedBatch, *, recomputes: bool = False) -> Losses:
        """Train on one batch, with ``recompute_activations`` or without."""
        for module in self.brain.modules.values():
            if hasattr(module, "recomputes"):
                module.recomputes = recomputes
        terms = self.brain.train_on(batch, group=1, should_step=True).terms
        names = ("loss",) if "loss" in terms else ("discriminator", "decoder")
        return {name: terms[name] for name in names}

    def close(self) -> None:
        """Close the logs."""
        self.brain.run_log.close()


class Trial:
    """A side's step over its batches; remembers the losses of the first one.

    Parameters
    ----------
    step : of a side.
    batches : each gives a batch of a round.
    before_first : called once, before the first step.
    """

    def __init__(
        self,
        step: Callable[[PaddedBatch], Losses],
        batches: Sequence[Callable[[], PaddedBatch]],
        *,
        before_first: Callable[[], None] | None = None,
    ) -> None:
        self.step, self.batches, self.before_first = step, batches, before_first
        self.losses: dict[str, float] = {}

    def __call__(self) -> None:
        """Do one round, with a step on every batch."""
        if self.before_first is not None:
            self.before_first()
            self.before_first = None
        for load in self.batches:
            losses = self.step(load())
            if not self.losses:
                self.losses = {name: float(value) for name, value in losses.items()}


def load_hparams(setting: Setting, *, name: str) -> tuple[dict[str, Any], nn.Module]:
    """Load a stage's YAML, and transformers' encoder; both encoders have the same weights.

    Every call gives modules with the same weights. ``name`` is that of the folder for logs.
    """
    output_folder = setting.folder / setting.stage / name
    output_folder.mkdir(parents=True, exist_ok=True)
    overrides = (
        f"data_folder: none\noutput_folder: {output_folder}\n"
        "metrics: [mel_distance]\ncost_steps: 0\nlog_interval_steps: 1000000\n"
    )
    if setting.small:
        block = setting.folder / "encoder.yaml"
        block.write_text(SMALL_ENCODER, encoding="utf-8")
        overrides += f"encoder: !include:{block}\ndecoder: !include:demo/decoder.yaml\n"
        overrides += SMALL_SIZES[setting.stage]
    with open(ROOT / "hparams" / STAGES[setting.stage][1], encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    if setting.stage == "decoder":
        settle_spectral_norms(hparams["modules"]["discriminator"])
    return hparams, plain_encoder(hparams["encoder"])


def make_step(setting: Setting, *, published: bool) -> PublishedStep | OurStep:
    """Make one side of a stage."""
    hparams, plain = load_hparams(setting, name="published" if published else "ours")
    if not published:
        return OurStep(hparams, setting)
    options = {"device": setting.device, "precision": setting.precision}
    if setting.stage == "quantizer":
        return PublishedQuantizerStep(hparams, plain, **options)
    return PublishedDecoderStep(hparams, plain, full_size=not setting.small, **options)


def entries_of(setting: Setting, variant: Variant) -> Sequence[Entries]:
    """Utterances of a side's batches."""
    if variant.crops > 1:
        return [rather_long(entries, part=GROUP) for entries in setting.batches]
    return similar_lengths(setting.batches) if variant.sorted else setting.batches


def make_loads(
    setting: Setting, variant: Variant, *, step: PublishedStep | OurStep
) -> list[Callable[[], PaddedBatch]]:
    """Give what gives the batch of every step: loaded once, or from the cache anew each time."""
    crops, cache = None, None
    if setting.stage == "decoder":
        crops = Crops(
            step.hparams["segment_frames"],
            hop_length=step.encoder.hop_length,
            per_utterance=variant.crops,
        )
    if variant.cached:
        described = describe_encoder(step.encoder, fingerprint(step.encoder))
        cache = FeatureCache(setting.folder / "cache", encoder=described)
    with_sig = crops is not None or not variant.cached
    options = {"crops": crops, "cache": cache, "with_sig": with_sig}
    loads = []
    for entries in entries_of(setting, variant):
        dataset = SigDataset(entries, sample_rate=SAMPLE_RATE, on_bad_file="raise", **options)
        load = partial(_load, dataset)
        loads.append(load if variant.cached else partial(_same, load()))
    return loads


def _load(dataset: SigDataset) -> PaddedBatch:
    return collate([dataset[index] for index in range(len(dataset))])


def _same(batch: PaddedBatch) -> PaddedBatch:
    return batch


def write_cache(setting: Setting) -> None:
    """Write the features of all utterances, in float16; once for both stages."""
    hparams, _ = load_hparams(setting, name="cache")
    encoder = hparams["encoder"]
    build_cache(
        setting.folder / "cache",
        {key: entry for entries in setting.batches for key, entry in entries.items()},
        encoder=encoder,
        fingerprint=fingerprint(encoder),
        device=setting.device,
        progress=False,
    )


def peak_of_step(setting: Setting, variant: Variant) -> int:
    """Bytes at the peak of one step with all its state, above what the process held before.

    The step is on the batch that takes most with its padding. RuntimeError on a CPU without
    Linux' ``/proc``.
    """
    torch.set_num_threads(setting.threads)
    _load_libraries(setting._replace(small=True), Variant(published=variant.published))
    device = torch.device(setting.device)
    held = held_bytes() if device.type == "cpu" else 0
    step = make_step(setting, published=variant.published)
    sizes = [padded_samples(entries) for entries in entries_of(setting, variant)]
    load = make_loads(setting, variant, step=step)[sizes.index(max(sizes))]
    for optimizer in step.optimizers.values():
        _allocate_states(optimizer)
    run = partial(step, recomputes=True) if variant.recomputes else step
    return peak_bytes(lambda: run(load()), device=device) - held


def _load_libraries(setting: Setting, variant: Variant) -> None:
    """Do a step of a small side, so that libraries that it brings along count as held before."""
    step = make_step(setting, published=variant.published)
    step(make_loads(setting._replace(batches=setting.batches[:1]), variant, step=step)[0]())


def _allocate_states(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's moments, which every step but a run's first one finds there."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def time_stage(
    setting: Setting, *, repeats: int
) -> tuple[dict[str, float], dict[str, dict[str, float]], float]:
    """Time all sides in turns.

    Returns
    -------
    Median seconds of a step, a mean over the batches, and the losses of the first step, by side;
    median seconds of the encoder in the published step.
    """
    published, ours = (make_step(setting, published=side) for side in (True, False))
    start = deepcopy(ours.brain.modules.state_dict())
    trials = {}
    for name, variant in VARIANTS[setting.stage].items():
        step = published if variant.published else ours
        trials[name] = Trial(
            partial(step, recomputes=True) if variant.recomputes else step,
            make_loads(setting, variant, step=step),
            before_first=None if variant.published else partial(ours.start_anew, start),
        )
    device = torch.device(setting.device)
    encoding = PartOfRuns(trials["as published"], published.plain, device=device)
    times = measure(trials | {"as published": encoding}, repeats=repeats, device=device)
    ours.close()
    seconds = {
        name: statistics.median(values) / len(setting.batches) for name, values in times.items()
    }
    # Of the same rounds as the steps, the first of which warms up.
    encoder_seconds = statistics.median(encoding.seconds[1:]) / len(setting.batches)
    return seconds, {name: trial.losses for name, trial in trials.items()}, encoder_seconds


def compare(setting: Setting, *, repeats: int, with_memory: bool) -> list[Row]:
    """Measure all sides of a stage and print them."""
    variants = VARIANTS[setting.stage]
    peaks: dict[str, int] = {}
    if with_memory:
        peaks = {
            name: in_child(peak_of_step, setting, variant) for name, variant in variants.items()
        }
    seconds, losses, encoder_seconds = time_stage(setting, repeats=repeats)
    rows = [
        Row(name, seconds[name], peaks.get(name), losses[name], same_batch=variant.same_batch)
        for name, variant in variants.items()
    ]
    share = encoder_seconds / seconds["as published"]
    print(f"\n{setting.stage}")
    for name, variant in variants.items():
        if variant.published or not (variant.same_batch or variant.recomputes):
            print(f"{name}: {describe(entries_of(setting, variant))}")
    print(table(rows))
    print(encoder_lines(share), flush=True)
    return rows


def encoder_lines(share: float) -> str:
    """Say what part of the published step its encoder is, and what the recipe's own would change.

    Parameters
    ----------
    share : of the published step's time, in [0, 1].
    """
    factor = 1 - share * (1 - 1 / ENCODER_SPEED)
    return (
        f"encoder: {100 * share:.0f} % of the published step, as transformers' model; with the\n"
        f"recipe's, up to {ENCODER_SPEED} times as fast, the step would take {factor:.2f} of its "
        f"time, and ratios\nof time would be {factor:.2f} of these"
    )


def table(rows: list[Row]) -> str:
    """Lines of a stage; ratios and differences are to the first row.

    A row of another batch has losses of its own, which are not compared.
    """
    first = rows[0]
    lines = [
        f"{'':{NAME_WIDTH}}{'s/step':>10}{'ratio':>10}{'peak/GiB':>10}{'ratio':>10}"
        f"{'difference':>12}  losses"
    ]
    for row in rows:
        peak, share, difference = "-", "-", "-"
        if row.peak is not None and first.peak is not None:
            peak, share = f"{row.peak / 2**30:.2f}", f"{first.peak / row.peak:.2f} x"
        if row.same_batch and row is not first:
            difference = f"{relative_difference(row.losses, first.losses):.1e}"
        losses = ", ".join(f"{name} {value:.5g}" for name, value in row.losses.items())
        ratio = f"{first.seconds / row.seconds:.2f} x"
        lines.append(
            f"{row.name:{NAME_WIDTH}}{row.seconds:#10.4g}{ratio:>10}{peak:>10}{share:>10}"
            f"{difference:>12}  {losses}"
        )
    return "\n".join(lines)


def relative_difference(losses: dict[str, float], reference: dict[str, float]) -> float:
    """Largest relative difference of any loss."""
    return max(abs(losses[name] - value) / abs(value) for name, value in reference.items())


def _batches(arguments: argparse.Namespace, folder: Path) -> list[Entries]:
    source = random.Random(arguments.seed)
    seconds = arguments.min_seconds, arguments.max_seconds
    number = arguments.batch * arguments.batches
    if arguments.audio is not None:
        limits = round(seconds[0] * SAMPLE_RATE), round(seconds[1] * SAMPLE_RATE)
        entries = drawn_utterances(arguments.audio, number=number, limits=limits, source=source)
    else:
        sizes = [round(source.uniform(*seconds) * SAMPLE_RATE) for _ in range(number)]
        entries = synthetic_utterances(folder, sizes=sizes)
    ids = list(entries)
    return [
        {key: entries[key] for key in ids[first : first + arguments.batch]}
        for first in range(0, number, arguments.batch)
    ]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--stage", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--audio", type=Path, help="folder of speech at 16 kHz; default: synthetic")
    parser.add_argument("--batch", type=int, default=16, help="utterances")
    parser.add_argument("--batches", type=int, default=4, help="of the quantizer stage")
    parser.add_argument("--min-seconds", type=float, default=2.0, help="of the utterances")
    parser.add_argument("--max-seconds", type=float, default=14.0, help="of the utterances")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of utterances")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32", help="CUDA only")
    parser.add_argument("--small", action="store_true", help="tiny modules: a trial of this file")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    arguments = parser.parse_args(argv)
    for name in ("batches", "threads", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.batch < GROUP or arguments.batch % GROUP:
        parser.error(f"--batch must be a multiple of {GROUP}, got {arguments.batch}")
    if not 1 <= arguments.min_seconds <= arguments.max_seconds:
        parser.error(
            "--min-seconds must be at least 1 and at most --max-seconds, got "
            f"{arguments.min_seconds:g} and {arguments.max_seconds:g}"
        )
    if arguments.precision != "fp32" and not arguments.device.startswith("cuda"):
        parser.error(f"--precision {arguments.precision} needs --device cuda")
    return arguments


def main(argv: list[str]) -> int:
    """Command line."""
    arguments = _parse(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        batches = _batches(arguments, folder)
        settings = [
            Setting(
                stage,
                batches if stage == "quantizer" else batches[:1],
                folder,
                device=arguments.device,
                precision=arguments.precision,
                small=arguments.small,
                threads=arguments.threads,
            )
            for stage in arguments.stage
        ]
        _print_head(arguments)
        write_cache(settings[0]._replace(batches=batches))
        for setting in settings:
            compare(setting, repeats=arguments.repeats, with_memory=not arguments.no_memory)
    print(
        "\ns/step: for as much audio as in a published step. ratio: the published step's time or\n"
        "peak memory divided by the row's. difference: of the first step's losses from those of\n"
        "the published step, relative; features from the cache are rounded to float16, and\n"
        "SpeechBrain's quantizer clamps probabilities in its entropy. Other batches have other\n"
        "losses."
    )
    return 0


def _print_head(arguments: argparse.Namespace) -> None:
    size = "tiny modules, whose ratios say nothing" if arguments.small else "full size"
    tf32 = arguments.device != "cpu" and torch.backends.cuda.matmul.allow_tf32
    print(
        f"{machine(arguments.device)}; {arguments.threads} thread(s), PyTorch "
        f"{torch.__version__}, {arguments.precision}{', TF32' * tf32}; {size}, random weights\n"
        f"{'speech' if arguments.audio else 'a synthetic signal, which is no speech'}; "
        f"median of {arguments.repeats} interleaved rounds",
        flush=True,
    )
    if arguments.small:
        print("both sides have our discriminators, as SpeechBrain's are of one size")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
