"""One optimizer step, clipped, and left out on all ranks where something is not finite."""

import torch
from torch import Tensor, nn


def guarded_step(
    optimizer: torch.optim.Optimizer,
    finite: Tensor,
    *,
    scaler: torch.amp.GradScaler,
    max_grad_norm: float,
) -> tuple[Tensor, Tensor]:
    """Unscale, clip, step if everything is finite; a collective call in a distributed run.

    Parameters
    ----------
    optimizer : with gradients, which it has no more afterwards.
    finite : scalar bool, whether all losses were.
    scaler : of fp16, whose ``update`` is left to the caller.
    max_grad_norm : of all parameter groups together; 0 for no clipping.

    Returns
    -------
    Norm before clipping, and whether the step was taken, both scalars on the device.
    """
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_grad_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    finite = on_all_ranks(finite & torch.isfinite(norm))
    step_if(optimizer, finite)
    optimizer.zero_grad(set_to_none=True)
    return norm, finite


def step_if(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Step if ``finite``; a fused optimizer decides that on the device, like under a GradScaler."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    elif finite:
        optimizer.step()


def on_all_ranks(finite: Tensor) -> Tensor:
    """Whether this is true on every rank, a scalar; a collective call in a distributed run."""
    if not torch.distributed.is_initialized():
        return finite
    value = finite.float()
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MIN)
    return value > 0
