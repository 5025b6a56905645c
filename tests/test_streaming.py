"""Left contexts and what they remember, against a context that simply keeps everything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from focalcodec.streaming import FILLS, FrameConv, LeftContext, State

BATCH, DIM = 2, 3
LENGTHS = st.integers(1, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), LENGTHS),
        st.tuples(st.just("rollback"), LENGTHS),
        st.tuples(st.just("repeat"), LENGTHS),  # a call that was given up
        st.tuples(st.just("reset"), st.sampled_from([[0], [1], [0, 1], None])),
        st.tuples(st.just("reload"), st.none()),
    ),
    max_size=40,
)


class Remembering:
    """The oracle: every row's frames since its beginning, and for each call what lies before."""

    def __init__(self, *, size, fill):
        self.size, self.fill = size, fill
        self.rows = [torch.empty(0, DIM) for _ in range(BATCH)]

    def call(self, x):
        padded = []
        for row, new in zip(self.rows, x, strict=True):
            whole = torch.cat([row, new])
            first = whole[:1] if self.fill == "replicate" else torch.zeros(1, DIM)
            padded.append(torch.cat([first.expand(self.size, -1), whole])[-self.size - len(new) :])
        return torch.stack(padded)

    def commit(self, x):
        self.rows = [torch.cat(pair) for pair in zip(self.rows, x, strict=True)]

    def reset(self, rows):
        for row in range(BATCH) if rows is None else rows:
            self.rows[row] = torch.empty(0, DIM)


def num_bytes_at_most(size, longest):
    return 4 * BATCH * DIM * (2 * size + max(longest, 4))


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 30), fill=st.sampled_from(FILLS), steps=STEPS)
def test_a_context_gives_the_frames_before_whatever_has_happened(size, fill, steps):
    module = nn.ModuleDict({"one": LeftContext(size, fill=fill)})
    state = State({"part": module}, batch_size=BATCH)
    oracle, longest = Remembering(size=size, fill=fill), 0
    source = torch.Generator().manual_seed(size)
    for step, argument in [*steps, ("commit", 1)]:
        if step == "reset":
            state.reset(argument)
            oracle.reset(argument)
        elif step == "reload":
            tensors = state.state_dict()
            state = State({"part": module}, batch_size=BATCH)
            state.load_state_dict(tensors)
        else:
            x = torch.randn(BATCH, argument, DIM, generator=source)
            longest = max(longest, argument)
            seen = [min(len(row), size) for row in oracle.rows]
            assert module["one"].num_before(BATCH, state=state) == seen
            y = module["one"](x, state=state)
            assert torch.equal(y, oracle.call(x))
            assert y.transpose(1, 2).stride(2) == 1  # as convolutions like it
            if step == "commit":
                state.commit()
                oracle.commit(x)
            elif step == "rollback":
                state.rollback()
        assert state.num_bytes() <= num_bytes_at_most(size, longest)


@pytest.mark.parametrize("fill", FILLS)
def test_whole_signals_begin_as_streams_do(fill):
    context = LeftContext(4, fill=fill)
    x = torch.randn(BATCH, 7, DIM)
    y = context(x)
    assert torch.equal(y, context(x, state=State({"": context}, batch_size=BATCH)))
    assert torch.equal(y[:, 4:], x)
    first = x[:, :1] if fill == "replicate" else torch.zeros(1, 1, DIM)
    assert torch.equal(y[:, :4], first.expand(BATCH, 4, DIM))
    assert context.num_before(BATCH) == [0, 0]


def test_a_context_of_nothing_is_no_context():
    context = LeftContext(0)
    state = State({"part": context}, batch_size=BATCH)
    x = torch.randn(BATCH, 7, DIM)
    assert context(x) is x and context(x, state=state) is x
    assert context.num_before(BATCH, state=state) == [0, 0]
    assert state.state_dict() == {} and state.num_bytes() == 0


def test_what_was_rolled_back_counts_no_more():
    context = LeftContext(2)
    state = State({"": context}, batch_size=BATCH)
    context(torch.ones(BATCH, 3, DIM), state=state)
    state.rollback()
    state.commit()
    assert context.num_before(BATCH, state=state) == [0, 0]


def test_frames_are_moved_seldom():
    """A call costs what it adds: not every call moves what is remembered."""
    context = LeftContext(100)
    state = State({"": context}, batch_size=1)
    starts = set()
    for _ in range(1000):
        starts.add(context(torch.zeros(1, 4, DIM), state=state).data_ptr())
        state.commit()
    assert len(starts) > 25  # of the 26 places behind each other in a buffer of 204 frames


def test_states_of_several_contexts_are_apart():
    parts = {"a": nn.Sequential(LeftContext(2), LeftContext(3)), "b": LeftContext(1)}
    state = State(parts, batch_size=BATCH)
    for size, context in zip((2, 3, 1), (*parts["a"], parts["b"]), strict=True):
        context(torch.full((BATCH, 5, 1), float(size)), state=state)
    state.commit()
    tensors = state.state_dict()
    assert len(tensors) == 6
    for name, size in {"a.0": 2, "a.1": 3, "b": 1}.items():
        assert torch.equal(tensors[f"{name}.frames"], torch.full((BATCH, size, 1), float(size)))
        assert tensors[f"{name}.num_seen"].tolist() == [5, 5]


# Mistakes


def test_states_are_for_their_own_modules_and_batch():
    context = LeftContext(2)
    state = State({"": context}, batch_size=BATCH)
    with pytest.raises(ValueError, match="belongs to other modules"):
        LeftContext(2)(torch.zeros(BATCH, 1, DIM), state=state)
    with pytest.raises(ValueError, match="holds 2 streams, got a batch of 3"):
        context(torch.zeros(3, 1, DIM), state=state)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        State({"": context}, batch_size=0)


def test_no_gradient_goes_through_a_state():
    context = LeftContext(2)
    state = State({"": context}, batch_size=BATCH)
    x = torch.ones(BATCH, 3, DIM, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"states are for inference; call under torch\.no_grad"):
        context(x, state=state)
    with torch.no_grad():
        assert context(x, state=state).shape == (BATCH, 5, DIM)
    context(x).sum().backward()  # without one it does
    assert torch.equal(x.grad[0, :, 0], torch.tensor([3.0, 1, 1]))


@pytest.mark.parametrize(("size", "fill"), [(-1, "zeros"), (3, "reflect")])
def test_wrong_contexts_are_named(size, fill):
    with pytest.raises(ValueError, match=f"one of replicate, zeros, got {size} and '{fill}'"):
        LeftContext(size, fill=fill)


@pytest.mark.parametrize("rows", [[2], [-1], [0, 5]])
def test_rows_that_are_not_there_are_named(rows):
    context = LeftContext(2)
    state = State({"": context}, batch_size=BATCH)
    context(torch.ones(BATCH, 3, DIM), state=state)
    state.commit()
    with pytest.raises(ValueError, match="rows must be from 0 to 1, one of each stream, got"):
        state.reset(rows)
    assert context.num_before(BATCH, state=state) == [2, 2]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("part.frames"), "1 names differ, such as part.frames"),
        (lambda s: s.update(more=s["part.frames"]), "1 names differ, such as more"),
        (lambda s: s.update({"part.frames": s["part.frames"][:1]}), "got frames of shape .1, 4, 3"),
        (lambda s: s.update({"part.frames": s["part.frames"][:, 1:]}), "frames of shape .2, 3, 3"),
        (lambda s: s.update({"part.frames": s["part.frames"][0]}), "frames of shape .4, 3"),
        (lambda s: s.update({"part.num_seen": torch.ones(3)}), "num_seen of shape .3,"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_without_a_change(edit, message):
    context = LeftContext(4)
    state = State({"part": context}, batch_size=BATCH)
    context(torch.randn(BATCH, 6, DIM), state=state)
    state.commit()
    before = state.state_dict()
    edit(wrong := dict(before))
    with pytest.raises(ValueError, match=message):
        state.load_state_dict(wrong)
    assert all(torch.equal(state.state_dict()[key], before[key]) for key in before)


# Convolutions


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 7])
def test_a_centred_convolution_is_that_of_torch(kernel_size, groups):
    conv = FrameConv(6, 12, kernel_size=kernel_size, groups=groups).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    padded = nn.functional.pad(x.transpose(1, 2), ((kernel_size - 1) // 2, kernel_size // 2))
    expected = nn.functional.conv1d(padded, conv.weight, conv.bias, groups=groups).transpose(1, 2)
    torch.testing.assert_close(conv(x), expected)


@torch.no_grad()
@settings(max_examples=60, deadline=None)
@given(
    kernel_size=st.integers(1, 12),
    groups=st.sampled_from([1, 2, 6]),
    fill=st.sampled_from(FILLS),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_a_causal_convolution_is_that_of_torch_behind_its_fill(kernel_size, groups, fill, sizes):
    conv = FrameConv(6, 12, kernel_size=kernel_size, groups=groups, causal=True, fill=fill).double()
    x = torch.randn(2, sum(sizes), 6, dtype=torch.float64)
    mode = {"zeros": "constant", "replicate": "replicate"}[fill]
    padded = nn.functional.pad(x.transpose(1, 2), (kernel_size - 1, 0), mode)
    expected = nn.functional.conv1d(padded, conv.weight, conv.bias, groups=groups).transpose(1, 2)
    torch.testing.assert_close(conv(x), expected)
    state, pieces = State({"": conv}, batch_size=2), []
    for piece in x.split(sizes, dim=1):
        pieces.append(conv(piece, state=state))
        state.commit()
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_a_convolution_trains(causal):
    conv = FrameConv(6, 6, kernel_size=5, causal=causal).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, (x,))
