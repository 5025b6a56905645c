"""Speech from text: padding, the end, cached generation, sampling, and a text learnt by heart."""

import math

import pytest
import torch

from recipes.downstream.sampling import draw, generate
from recipes.downstream.speech_lm import SpeechLM

CODEBOOK_SIZE, NUM_CHARACTERS, SPEAKER_DIM = 12, 9, 6
codebook_counts = pytest.mark.parametrize("num_codebooks", [1, 2])


def make_lm(num_codebooks=1, **changes):
    sizes = {"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 32, "max_positions": 64}
    lm = SpeechLM(
        torch.randn(num_codebooks, CODEBOOK_SIZE, 5),
        num_characters=NUM_CHARACTERS,
        speaker_dim=SPEAKER_DIM,
        **sizes | changes,
    )
    for weight in lm.decoder.parameters():
        weight.data *= 10 if weight.ndim > 1 else 1  # initial ones hardly see what stands before
    return lm.eval()


def batch_of(num_chars=(4, 0, 7), num_toks=(5, 8, 1), *, num_codebooks=1, filler=0):
    """Random rows; what lies behind their ends is ``filler``."""
    num_chars, num_toks = torch.tensor(num_chars), torch.tensor(num_toks)
    characters = torch.full((len(num_chars), int(num_chars.max())), filler)
    toks = torch.full((len(num_toks), int(num_toks.max()), num_codebooks), filler)
    source = torch.Generator().manual_seed(1)
    for row, (chars, length) in enumerate(zip(num_chars, num_toks, strict=True)):
        shape = (int(length), num_codebooks)
        characters[row, :chars] = torch.randint(NUM_CHARACTERS, (int(chars),), generator=source)
        toks[row, :length] = torch.randint(CODEBOOK_SIZE, shape, generator=source)
    return {
        "characters": characters,
        "num_chars": num_chars,
        "speaker": torch.randn(len(num_chars), SPEAKER_DIM, generator=source),
        "toks": toks,
        "num_toks": num_toks,
    }


def row_of(batch, row):
    chars, length = int(batch["num_chars"][row]), int(batch["num_toks"][row])
    alone = {key: value[row : row + 1] for key, value in batch.items()}
    return alone | {"characters": alone["characters"][:, :chars], "toks": alone["toks"][:, :length]}


def prompt_of(batch):
    return {key: batch[key] for key in ("characters", "num_chars", "speaker")}


@codebook_counts
def test_padding_never_changes_a_prediction(num_codebooks):
    lm = make_lm(num_codebooks)
    batch = batch_of(num_codebooks=num_codebooks, filler=-(2**40))
    logits, toks, mask = lm(**batch)
    assert logits.shape == (3, 9, num_codebooks, CODEBOOK_SIZE + 1)
    for row, length in enumerate(batch["num_toks"].tolist()):
        alone = lm(**row_of(batch, row))
        end = length + 1
        assert torch.allclose(logits[row, :end], alone.logits[0], atol=1e-4)  # float32, 2 layers
        assert torch.equal(toks[row, :end], alone.toks[0])
        assert torch.equal(mask[row, :end], alone.mask[0]) and not mask[row, end:].any()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_every_weight_gets_a_finite_gradient(half):
    lm = make_lm(num_codebooks=2).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = lm(**batch_of(num_codebooks=2, filler=-1)).loss()
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in lm.parameters())


def test_only_tokens_and_the_end_are_predicted():
    batch = batch_of((3, 2), (2, 4), num_codebooks=2)
    logits, toks, mask = make_lm(2)(**batch)
    assert torch.equal(toks[0, :2], batch["toks"][0, :2])
    assert toks[0, 2, 0] == toks[1, 4, 0] == CODEBOOK_SIZE
    assert mask[0].tolist() == [[True, True], [True, True], [True, False], *[[False, False]] * 2]
    assert int(mask.sum()) == 2 * (2 + 4) + 2
    assert logits[:, :, 1, CODEBOOK_SIZE].isneginf().all()
    assert logits[:, :, 0].isfinite().all() and logits[..., :CODEBOOK_SIZE].isfinite().all()


def test_a_prediction_sees_what_stands_before_alone():
    lm, batch = make_lm(), batch_of((4, 3), (6, 6))
    logits = lm(**batch).logits
    other = {key: value.clone() for key, value in batch.items()}
    other["toks"][:, 3] = (other["toks"][:, 3] + 1) % CODEBOOK_SIZE
    changed = (lm(**other).logits - logits).abs().amax(dim=(2, 3)) > 1e-6
    assert not changed[:, :4].any() and changed[:, 4:].all()
    for key in ("characters", "speaker"):
        other = {name: value.clone() for name, value in batch.items()}
        other[key][:, 0] = (other[key][:, 0] + 1) % NUM_CHARACTERS
        assert ((lm(**other).logits - logits).abs().amax(dim=(2, 3)) > 1e-6).all()


def test_full_size_has_the_papers_decoder():
    with torch.device("meta"):
        lm = SpeechLM(torch.empty(1, 8192, 13), num_characters=30, speaker_dim=512)
    count = sum(weight.numel() for weight in lm.decoder.parameters())
    assert round(count / 1e6, 1) == 45.6


@codebook_counts
def test_cached_generation_equals_teacher_forcing(num_codebooks):
    lm, batch = make_lm(num_codebooks), batch_of(num_codebooks=num_codebooks, filler=-1)
    num_toks = torch.tensor([20, 30, 11])
    generated = generate(
        lm, **prompt_of(batch), max_toks=30, num_toks=num_toks, seeds=[0, 1, 2], top_p=1e-9
    )
    toks = torch.nn.utils.rnn.pad_sequence(generated.toks, batch_first=True)
    assert toks.unique().numel() > 3
    forced = lm(**prompt_of(batch), toks=toks, num_toks=num_toks)
    best = forced.logits[..., :CODEBOOK_SIZE].argmax(dim=-1)
    for row, length in enumerate(num_toks.tolist()):
        assert torch.equal(best[row, :length], toks[row, :length])


def test_exactly_as_many_tokens_as_asked_for():
    batch = batch_of()
    num_toks = torch.tensor([1, 20, 7])
    lm = make_lm()
    lm.end_head.bias.data.fill_(100)
    generated = generate(
        lm, **prompt_of(batch), max_toks=20, num_toks=num_toks, seeds=[0, 0, 0], top_p=1.0
    )
    assert [tuple(row.shape) for row in generated.toks] == [(1, 1), (20, 1), (7, 1)]
    assert max(int(row.max()) for row in generated.toks) < CODEBOOK_SIZE
    assert not generated.ended.any()


@pytest.mark.parametrize(("bias", "length"), [(100.0, 1), (-100.0, 10)], ids=["ends", "never ends"])
def test_the_end_is_said_or_the_row_is_cut(bias, length):
    lm, batch = make_lm(), batch_of()
    lm.end_head.bias.data.fill_(bias)
    generated = generate(lm, **prompt_of(batch), max_toks=10, seeds=[0, 1, 2])
    assert [len(row) for row in generated.toks] == [length] * 3
    assert generated.ended.tolist() == [bias > 0] * 3


def test_each_row_may_have_a_limit_of_its_own():
    lm, batch = make_lm(max_positions=20), batch_of()
    lm.end_head.bias.data.fill_(-100)
    room = 20 - lm.num_positions(batch["num_chars"], 0)
    generated = generate(lm, **prompt_of(batch), max_toks=room, seeds=[0, 1, 2])
    assert [len(row) for row in generated.toks] == [14, 18, 11]
    assert not generated.ended.any()


@codebook_counts
def test_a_row_depends_on_its_own_seed_alone(num_codebooks):
    lm, batch = make_lm(num_codebooks), batch_of(num_codebooks=num_codebooks)
    options = {"max_toks": 15, "top_p": 1.0}
    together = generate(lm, **prompt_of(batch), seeds=[3, 4, 5], **options)
    other = generate(lm, **prompt_of(batch), seeds=[3, 6, 5], **options)
    longer = generate(lm, **prompt_of(batch), seeds=[3, 4, 5], **options | {"max_toks": 20})
    assert len({len(row) for row in together.toks}) > 1
    for row, seed in enumerate([3, 4, 5]):
        alone = generate(lm, **prompt_of(row_of(batch, row)), seeds=[seed], **options)
        assert torch.equal(alone.toks[0], together.toks[row])
        assert alone.ended[0] == together.ended[row]
        assert torch.equal(other.toks[row], together.toks[row]) == (row != 1)
        assert torch.equal(longer.toks[row][:15], together.toks[row])


def test_samples_follow_the_distribution():
    """Of one token after the same prompt, which top-p cuts off and temperature flattens."""
    lm, num_rows = make_lm(), 2000
    batch = row_of(batch_of((4,), (1,)), 0)
    prompt = {key: value.expand(num_rows, *value.shape[1:]) for key, value in batch.items()}
    logits = lm(**batch).logits[0, 0, 0, :CODEBOOK_SIZE]

    def shares(**options):
        rows = generate(lm, **prompt_of(prompt), max_toks=1, seeds=range(num_rows), **options).toks
        return torch.cat(rows).flatten().bincount(minlength=CODEBOOK_SIZE) / num_rows

    probabilities = logits.softmax(dim=0)
    # Four standard deviations of a share.
    tolerance = 4 * 0.5 / num_rows**0.5
    assert torch.allclose(shares(top_p=1.0), probabilities, atol=tolerance)
    hot = (logits / 5).softmax(dim=0)
    assert torch.allclose(shares(top_p=1.0, temperature=5.0), hot, atol=tolerance)
    ranked, classes = probabilities.sort(descending=True)
    before = ranked.cumsum(dim=0) - ranked
    nucleus = torch.zeros(CODEBOOK_SIZE).index_put((classes[before < 0.6],), ranked[before < 0.6])
    assert 1 < int((nucleus > 0).sum()) < CODEBOOK_SIZE
    kept = shares(top_p=0.6)
    assert not kept[nucleus == 0].any()
    assert torch.allclose(kept, nucleus / nucleus.sum(), atol=tolerance)


def test_what_has_no_probability_is_never_drawn():
    scores = torch.tensor([-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]).expand(3, -1)
    below = 1 / (1 + math.e)
    highest = 1 - 2**-24  # of float32 below 1
    drawn = draw(scores, uniform=torch.tensor([0, below - 1e-6, highest]))
    assert drawn.tolist() == [1, 1, 3]
    drawn = draw(scores, uniform=torch.tensor([1e-6, below + 1e-6, highest]))
    assert drawn.tolist() == [1, 3, 3]
    many = torch.randn(500, 100).index_fill(1, torch.tensor([99]), -torch.inf)
    assert (draw(many, uniform=torch.full((500,), highest)) == 98).all()


def test_dropout_is_for_training():
    lm, batch = make_lm(dropout=0.5), batch_of()
    assert torch.equal(lm(**batch).logits, lm(**batch).logits)
    lm.train()
    assert not torch.equal(lm(**batch).logits, lm(**batch).logits)


@codebook_counts
def test_three_sentences_are_learnt_by_heart(num_codebooks):
    """All tokens come back, and the end where it was, of an empty text too."""
    lm = make_lm(num_codebooks).train()
    batch = batch_of((4, 0, 7), (6, 9, 3), num_codebooks=num_codebooks, filler=-1)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = lm(**batch).loss()
        loss.backward()
        optimizer.step()
    generated = generate(lm.eval(), **prompt_of(batch), max_toks=20, seeds=[0, 1, 2], top_p=0.5)
    assert generated.ended.all()
    for row, length in enumerate(batch["num_toks"].tolist()):
        assert torch.equal(generated.toks[row], batch["toks"][row, :length])


def test_rows_too_long_are_refused_before_they_are_computed():
    lm, batch = make_lm(max_positions=17), batch_of((4, 0, 7), (5, 8, 1))
    assert lm.num_positions(7, 8) == 17 and lm.fits(7, 8) and not lm.fits(8, 8)
    lm(**batch)
    with pytest.raises(ValueError, match="has 18 positions, but max_positions is 17"):
        lm(**batch_of((4, 8), (5, 8)))
    with pytest.raises(ValueError, match="has 18 positions, but max_positions is 17"):
        generate(lm, **prompt_of(batch), max_toks=9, seeds=[0, 1, 2])
    generate(lm, **prompt_of(batch), max_toks=9, num_toks=torch.tensor([9, 9, 8]), seeds=[0, 1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"toks": torch.zeros(3, 8, 2).long()}, r"toks must be \(B, L, 1\) int64"),
        ({"num_toks": torch.tensor([5, 9, 1])}, r"num_toks must be in \[0, 8\], got \[5, 9, 1\]"),
        ({"num_chars": torch.tensor([0.5, 0, 1])}, "num_chars must be .*absolute.*float32"),
        ({"characters": torch.zeros(3, 7)}, "characters must be .*got torch.float32"),
        ({"speaker": torch.zeros(3, 5)}, r"speaker must be \(3, 6\).*got \(3, 5\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_batches_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_lm()(**batch_of() | changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, "top_p must be in .*got 0.0 and 1.0"),
        ({"temperature": 0.0}, "temperature above 0.*got 0.9 and 0.0"),
        ({"seeds": [1, 2]}, "seeds must be one for each of 3 rows, got 2"),
        ({"max_toks": 0}, "max_toks must be at least 1, got 0"),
        ({"num_toks": torch.tensor([1, 0, 2])}, r"num_toks must be in \[1, 10\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate(
            make_lm(), **prompt_of(batch_of()), **{"max_toks": 10, "seeds": [0, 1, 2]} | options
        )
