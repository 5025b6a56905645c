"""What causal modules see to their left: left context, and what it remembers between two calls.

The causal parts of the codec have one ``forward`` for whole signals and for streams of them. All
that reaches back in time, the taps of convolutions and the keys of attention, goes through a
`LeftContext`, a module without weights that puts the frames before a call in front of it:

- without a `State` these are the frames before the beginning of the signal, made up as its ``fill``
  says, and nothing is remembered;
- with one they are the last frames of the call before. The first call finds what a whole signal
  finds, so that a stream and a whole signal give the same results.

A `State` belongs to one run through some modules, such as encoder and compressor, of a batch of
streams. What a call adds counts only after `State.commit`: a call that fails, or is given up, can
be repeated. States are for inference: no gradient reaches back through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from focalcodec.fastconv import convolve, depthwise_by_sums, is_long_depthwise
from focalcodec.linear_map import LinearMap

FILLS = ("replicate", "zeros")


class LeftContext(nn.Module):
    """Put the last ``size`` frames in front of a sequence (B, N, C).

    Parameters
    ----------
    size : frames of context, >= 0.
    fill : what stands before the beginning of a signal: "replicate" its first frame, or "zeros".

    Raises
    ------
    ValueError : if ``size`` is negative or ``fill`` not known.
    """

    def __init__(self, size: int, *, fill: str = "replicate") -> None:
        super().__init__()
        if size < 0 or fill not in FILLS:
            raise ValueError(
                f"size must be at least 0 and fill one of {', '.join(FILLS)}, got {size} and "
                f"{fill!r}"
            )
        self.size = size
        self.fill = fill

    def forward(self, x: Tensor, *, state: State | None = None) -> Tensor:
        """(B, N, C), N >= 1, to (B, size + N, C).

        With ``state`` it is a view that must not be changed, whose time axis is contiguous in
        memory, as convolutions like it.

        Raises
        ------
        ValueError : if the state belongs to other modules or to another number of streams.
        RuntimeError : with ``state``, if a gradient would have to flow.
        """
        if self.size == 0:
            return x
        if state is not None:
            return state.history(self).extend(x)
        if self.fill == "zeros":
            return F.pad(x, (0, 0, self.size, 0))
        return torch.cat([x[:, :1].expand(-1, self.size, -1), x], dim=1)

    def num_before(self, batch_size: int, *, state: State | None = None) -> list[int]:
        """Real frames, of each row, among the ``size`` in front of the next call."""
        if state is None or self.size == 0:
            return [0] * batch_size
        return [min(seen, self.size) for seen in state.history(self).num_seen]


class FrameConv(LinearMap, nn.Conv1d):
    """Convolution of stride 1 over the frames of (B, N, C), which keeps N.

    Parameters
    ----------
    input_dim, output_dim : channels.
    kernel_size : frames. A centred even kernel reaches one frame further ahead than back.
    groups : as in ``torch.nn.Conv1d``.
    causal : reach back only.
    fill : what stands before the beginning of a signal, see `LeftContext`; a centred convolution
        has zeros on both sides.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        kernel_size: int,
        groups: int = 1,
        causal: bool = False,
        fill: str = "replicate",
    ) -> None:
        padding = 0 if causal else (kernel_size - 1) // 2
        super().__init__(input_dim, output_dim, kernel_size, padding=padding, groups=groups)
        self.context = LeftContext(kernel_size - 1, fill=fill) if causal else None
        self.packable = causal and groups == 1

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Weights (output_dim, input_dim * kernel_size) of the map of what the taps reach."""
        return self.weight.flatten(1), self.bias

    def forward(self, x: Tensor, *, state: State | None = None) -> Tensor:
        """(B, N, input_dim) to (B, N, output_dim); ``state`` only for a causal one."""
        if self.context is not None:
            x = self.context(x, state=state)
            if self.packed is not None:
                return self.packed(x.unfold(1, self.kernel_size[0], 1).flatten(2))
            if state is not None and is_long_depthwise(x, self):
                shape = (x.shape[0], self.out_channels, *self.kernel_size)
                work = state.prepared(self, lambda: x.new_empty(shape))
                return depthwise_by_sums(x, self, work=work)
            return convolve(x, self)
        x = x.transpose(1, 2)  # (B, C, N)
        if self.kernel_size[0] % 2 == 0:
            x = F.pad(x, (0, 1))
        return super().forward(x).transpose(1, 2)


class State:
    """Memory of the `LeftContext` modules inside of some modules, for a batch of streams.

    Parameters
    ----------
    modules : those that the streams run through, by name.
    batch_size : streams B; all of them advance by the same number of frames in every call.

    Raises
    ------
    ValueError : if ``batch_size`` is below 1.
    """

    def __init__(self, modules: Mapping[str, nn.Module], *, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._prepared: dict[nn.Module, Any] = {}
        self._histories = {
            context: History(context, batch_size=batch_size, name=f"{name}.{path}".rstrip("."))
            for name, module in modules.items()
            for path, context in module.named_modules()
            if isinstance(context, LeftContext) and context.size > 0
        }

    def history(self, context: LeftContext) -> History:
        """Memory of one module.

        Raises
        ------
        ValueError : if the state was made for other modules.
        """
        if context not in self._histories:
            raise ValueError("this state belongs to other modules; make one with these")
        return self._histories[context]

    def prepared(self, module: nn.Module, make: Callable[[], Any]) -> Any:
        """Make something of a module's weights, once: they do not change while streams are open."""
        if module not in self._prepared:
            self._prepared[module] = make()
        return self._prepared[module]

    def commit(self) -> None:
        """Let what has been added since the last commit count."""
        for history in self._histories.values():
            history.commit()

    def rollback(self) -> None:
        """Forget what has been added since the last commit."""
        for history in self._histories.values():
            history.rollback()

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Begin anew, in some rows or in all of them; the other rows go on.

        Raises
        ------
        ValueError : if there is no such row; nothing has changed then.
        """
        rows = range(self.batch_size) if rows is None else list(rows)
        if unknown := [row for row in rows if row not in range(self.batch_size)]:
            raise ValueError(
                f"rows must be from 0 to {self.batch_size - 1}, one of each stream, got {unknown}"
            )
        for history in self._histories.values():
            history.reset(rows)

    def num_bytes(self) -> int:
        """Memory that the state takes."""
        return sum(history.num_bytes() for history in self._histories.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Copy of everything, by name: frames (B, n, C) and ``num_seen`` (B,) of each context."""
        tensors = {}
        for history in self._histories.values():
            tensors |= history.state_dict()
        return tensors

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless `load_state_dict` takes these tensors."""
        names = {key for history in self._histories.values() for key in history.keys()}
        if missing := sorted(names ^ set(tensors)):
            raise ValueError(
                f"this state is of other modules: {len(missing)} names differ, such as {missing[0]}"
            )
        for history in self._histories.values():
            history.check(tensors)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on where another state of the same modules was.

        Raises
        ------
        ValueError : if names or shapes do not fit; nothing has changed then.
        """
        self.check(tensors)
        for history in self._histories.values():
            history.load_state_dict(tensors)


class History:
    """Last frames of one context, in a buffer that is moved seldom.

    Frames are appended behind each other; when the buffer is full, the last ones move to its front,
    once in ``context.size`` frames or more. So a call costs what it adds, not what is remembered,
    and memory stays bounded for ever.
    """

    def __init__(self, context: LeftContext, *, batch_size: int, name: str) -> None:
        self.size, self.fill = context.size, context.fill
        self.name = name
        self.num_seen = [0] * batch_size
        self._frames: Tensor | None = None  # (B, C, capacity)
        self._stop = self.size  # behind the last frame that counts
        self._added = 0

    def extend(self, x: Tensor) -> Tensor:
        """(B, N, C) with what came before it, (B, size + N, C)."""
        if x.shape[0] != len(self.num_seen):
            raise ValueError(
                f"this state holds {len(self.num_seen)} streams, got a batch of {x.shape[0]}"
            )
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("states are for inference; call under torch.no_grad()")
        new = x.transpose(1, 2)  # (B, C, N)
        self._make_room(new)
        start, self._added = self._stop, new.shape[2]
        self._frames[:, :, start : start + self._added] = new
        fresh = [row for row, seen in enumerate(self.num_seen) if seen == 0]
        if fresh:
            first = new[fresh, :, :1] if self.fill == "replicate" else 0
            self._frames[fresh, :, start - self.size : start] = first
        return self._frames[:, :, start - self.size : start + self._added].transpose(1, 2)

    def commit(self) -> None:
        """Count what `extend` has added."""
        self._stop += self._added
        if self._added:
            self.num_seen = [seen + self._added for seen in self.num_seen]
        self._added = 0

    def rollback(self) -> None:
        """Forget what `extend` has added."""
        self._added = 0

    def reset(self, rows: Iterable[int]) -> None:
        """Begin anew in some rows."""
        for row in rows:
            self.num_seen[row] = 0
        self._added = 0

    def num_bytes(self) -> int:
        """Memory of the buffer."""
        return 0 if self._frames is None else self._frames.nbytes

    def keys(self) -> tuple[str, str]:
        """Names in the state dict."""
        return f"{self.name}.frames", f"{self.name}.num_seen"

    def state_dict(self) -> dict[str, Tensor]:
        """Frames that the next call will see, none before the first call, and counts."""
        frames = torch.zeros(len(self.num_seen), 0, 0)
        if self._frames is not None:
            frames = self._frames[:, :, self._stop - self.size : self._stop]
        frames_key, seen_key = self.keys()
        return {
            frames_key: frames.transpose(1, 2).contiguous(),
            seen_key: torch.tensor(self.num_seen),
        }

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless the tensors can be loaded."""
        frames, num_seen = (tensors[key] for key in self.keys())
        rows = len(self.num_seen)
        sizes = {self.size} if bool((num_seen > 0).any()) else {self.size, 0}
        fits = frames.ndim == 3 and frames.shape[0] == rows and frames.shape[1] in sizes
        if num_seen.shape != (rows,) or not fits:
            raise ValueError(
                f"{self.name} holds {rows} streams of {self.size} frames, got frames of shape "
                f"{tuple(frames.shape)} and num_seen of shape {tuple(num_seen.shape)}"
            )

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; call `check` before."""
        frames, num_seen = (tensors[key] for key in self.keys())
        self._added, self._stop, self._frames = 0, self.size, None
        self.num_seen = num_seen.tolist()
        if any(self.num_seen):
            new = frames.transpose(1, 2)
            self._make_room(new[:, :, :0])
            self._frames[:, :, : self.size] = new

    def _make_room(self, new: Tensor) -> None:
        """Have a buffer with room for (B, C, N) more."""
        num_added = new.shape[2]
        if self._frames is None or self._frames.shape[2] < 2 * self.size + num_added:
            frames = new.new_zeros(*new.shape[:2], 2 * self.size + max(num_added, 4))
            if self._frames is not None:
                frames[:, :, : self.size] = self._frames[:, :, self._stop - self.size : self._stop]
            self._frames, self._stop = frames, self.size
        elif self._stop + num_added > self._frames.shape[2]:
            # Both parts are apart: it holds twice the size, and more than that is taken.
            last = slice(self._stop - self.size, self._stop)
            self._frames[:, :, : self.size] = self._frames[:, :, last]
            self._stop = self.size
