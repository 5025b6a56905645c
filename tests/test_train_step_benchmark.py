"""The training benchmark at toy size: all sides do the same work, and its ratios are ratios."""

import contextlib
import io
import random
import re
import tempfile
from getpass import getuser

import pytest
import soundfile
import torch

from benchmarks.measuring import in_child
from benchmarks.published_steps import (
    PublishedDecoderStep,
    settle_spectral_norms,
    speechbrain_discriminator,
)
from benchmarks.subjects import (
    drawn_utterances,
    padded_samples,
    rather_long,
    similar_lengths,
    synthetic_utterances,
)
from benchmarks.train_step import (
    VARIANTS,
    Row,
    Setting,
    Trial,
    encoder_lines,
    load_hparams,
    main,
    peak_of_step,
    table,
)
from recipes.common.discriminators import MultiPeriodMultiScaleDiscriminator

# transformers' own
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
SIZES = [16123, 24007, 19200, 30001]  # samples; unequal, and mostly no whole number of frames


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Text of a whole run, and what it leaves in the folder for temporary files."""
    folder, text = tmp_path_factory.mktemp("temporary"), io.StringIO()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setattr(tempfile, "tempdir", str(folder))
        options = (
            "--small --no-memory --batch 4 --batches 2 --min-seconds 1 --max-seconds 2 --repeats 1"
        )
        main([*options.split(), f"--threads={threads}"])
    left = [path.name for path in folder.iterdir() if path.name != f"torchinductor_{getuser()}"]
    return text.getvalue(), left


def rows_of(text: str, stage: str) -> dict[str, list[str]]:
    """Cells of a stage's table by the row's name."""
    part = text.split(f"\n{stage}\n")[1].split("\nencoder: ")[0]
    lines = [line for line in part.splitlines() if "padding" not in line]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    return {first or "head": rest for first, *rest in cells}


@pytest.mark.parametrize("stage", VARIANTS)
def test_every_side_has_a_row_and_the_losses_of_the_published_step(stage, printed):
    rows = rows_of(printed[0], stage)
    assert list(rows) == ["head", *VARIANTS[stage]]
    assert rows["head"] == [
        "s/step",
        "ratio",
        "peak/GiB",
        "ratio",
        "difference",
        "losses",
    ]
    for name, variant in VARIANTS[stage].items():
        seconds, ratio, _, _, difference, losses = rows[name]
        published = float(rows["as published"][0])
        assert float(ratio.removesuffix(" x")) == pytest.approx(
            published / float(seconds), rel=0.02, abs=0.01
        )
        assert all(float(loss.split()[-1]) != 0 for loss in losses.split(", "))
        if variant.published or not variant.same_batch:
            assert difference == "-"
        else:
            assert 0 < float(difference) < (2**-11 if variant.cached else 1e-3)
    assert rows["ours"][4] != rows["ours, cached"][4]  # rounded to float16: the cache was in use


@pytest.mark.parametrize("stage", VARIANTS)
def test_the_encoders_share_says_what_a_faster_one_would_change(stage, printed):
    text = printed[0].split(f"\n{stage}\n")[1]
    # Toy steps on a busy machine may take less time than their encoder: only the sum is tested.
    share = int(re.search(r"encoder: (\d+) % of the published step", text)[1])
    factor = float(re.search(r"would take (\S+) of its time", text)[1])
    assert factor == pytest.approx(1 - share / 100 * (1 - 1 / 1.3), abs=0.01)  # both are rounded


def test_ratios_shrink_by_the_encoders_share():
    text = " ".join(encoder_lines(0.65).split())
    assert "up to 1.3 times as fast, the step would take 0.85 of its time" in text
    assert text.endswith("ratios of time would be 0.85 of these")


def test_nothing_is_left_behind(printed):
    assert printed[1] == []


def test_ratios_are_those_of_the_first_row():
    rows = [
        Row("as published", 8.0, 6 * 2**30, {"loss": 2.0, "other": -1.0}),
        Row("ours", 2.5, 2 * 2**30, {"loss": 2.002, "other": -1.02}),
        Row("ours, 4 crops", 1.0, None, {"loss": 3.0, "other": 1.0}, same_batch=False),
    ]
    first, second, third = (re.split(r"\s{2,}", line) for line in table(rows).splitlines()[1:])
    assert first[1:6] == ["8.000", "1.00 x", "6.00", "1.00 x", "-"]
    assert second[1:6] == ["2.500", "3.20 x", "2.00", "3.00 x", "2.0e-02"]
    assert third[1:6] == ["1.000", "8.00 x", "-", "-", "-"]


def test_a_trial_keeps_the_first_losses():
    losses, starts = iter([{"loss": torch.tensor(3.0)}, {"loss": torch.tensor(2.0)}]), []
    seen = []
    trial = Trial(
        lambda batch: (seen.append(batch), next(losses))[1],
        [lambda: "first", lambda: "second"],
        before_first=lambda: starts.append(trial.losses),
    )
    trial()
    assert trial.losses == {"loss": 3.0} and starts == [{}] and seen == ["first", "second"]
    losses = iter([{"loss": torch.tensor(1.0)}] * 2)
    trial()
    assert trial.losses == {"loss": 3.0} and len(starts) == 1


def test_speechbrains_discriminators_get_our_weights_and_agree_in_training():
    ours = MultiPeriodMultiScaleDiscriminator()
    settle_spectral_norms(ours)
    theirs = speechbrain_discriminator(ours)
    sig = torch.randn(1, 1, 1790)
    with torch.no_grad():
        pairs = zip(ours.train()(sig)[0], theirs.train()(sig)[0], strict=True)
    for score, their_score in pairs:
        torch.testing.assert_close(score, their_score, rtol=1e-4, atol=1e-6)  # float32, 8 layers


def test_the_published_step_holds_one_set_of_discriminators(tmp_path):
    hparams, plain = load_hparams(Setting("decoder", [], tmp_path, small=True), name="published")
    ours = MultiPeriodMultiScaleDiscriminator()
    hparams["modules"]["discriminator"] = ours
    step = PublishedDecoderStep(hparams, plain, device="cpu")
    theirs = [*step.discriminator.parameters(), *step.discriminator.buffers()]
    assert not any(x.is_meta for x in theirs)
    held = [*ours.parameters(), *ours.buffers(), *step.encoder.parameters()]
    assert all(x.is_meta for x in held)


def test_peak_memory_is_that_of_the_published_table_of_frames_times_codes(tmp_path):
    """Neither libraries nor what this process holds may be counted; both exceed the table."""
    entries = synthetic_utterances(tmp_path, sizes=[3 * size for size in SIZES])
    setting = Setting("quantizer", [entries], tmp_path, small=True, threads=torch.get_num_threads())
    published, ours = (VARIANTS["quantizer"][name] for name in ("as published", "ours"))
    peak = in_child(peak_of_step, setting, published)
    bytes_of_table = sum(-(-3 * size // 320) for size in SIZES) * 2**13 * 4
    assert peak - peak_of_step(setting, ours) > 4 * bytes_of_table  # of 7, measured
    assert peak < 13 * bytes_of_table  # measured: 9


def test_utterances_are_drawn_within_the_limits(tmp_path):
    synthetic_utterances(tmp_path, sizes=SIZES)
    entries = drawn_utterances(tmp_path, number=2, limits=(17000, 25000), source=random.Random(0))
    assert sorted(entry["num_samples"] for entry in entries.values()) == [19200, 24007]
    with pytest.raises(ValueError, match="holds 2 .* and --batch needs 4"):
        drawn_utterances(tmp_path, number=4, limits=(17000, 25000), source=random.Random(0))
    soundfile.write(tmp_path / "other.wav", torch.zeros(800).numpy(), 8000)
    with pytest.raises(ValueError, match="other.wav must be at 16000 Hz, got 8000 Hz"):
        drawn_utterances(tmp_path, number=1, limits=(0, 25000), source=random.Random(0))


def test_a_part_of_the_utterances_is_rather_long():
    entries = {f"{size}": {"num_samples": size} for size in (8, 3, 5, 1, 2, 7, 6, 4)}
    assert sorted(rather_long(entries, part=4)) == ["3", "7"]


def test_batches_of_similar_lengths_have_the_same_utterances_and_little_padding():
    sizes = [8, 3, 5, 1, 2, 7, 6, 4]
    entries = {f"{size}": {"num_samples": size} for size in sizes}
    halves = [dict(list(entries.items())[:4]), dict(list(entries.items())[4:])]
    groups = similar_lengths(halves)
    assert [sorted(group) for group in groups] == [["1", "2", "3", "4", "5"], ["6", "7", "8"]]
    assert sum(map(padded_samples, groups)) == 49 < sum(map(padded_samples, halves)) == 60
    assert similar_lengths([entries]) == [entries]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch=6"], "--batch must be a multiple of 4, got 6"),
        (["--repeats=0"], "--repeats must be at least 1, got 0"),
        (["--min-seconds=3", "--max-seconds=2"], "at most --max-seconds, got 3 and 2"),
        (["--precision=bf16", "--device=cpu"], "--precision bf16 needs --device cuda"),
    ],
    ids=["batch", "repeats", "seconds", "precision"],
)
def test_wrong_options_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err
