"""Several processes that train as one, under `accelerate launch`: each has a part of every batch, the losses see all of it.

The contrastive loss tells an image apart from all texts of the batch, whoever read them. Every process therefore gathers
the features of all, and computes the loss of the whole batch. The gradient of a feature is then the sum of what all
processes ask of it, so many times too large; the mean of the parameters' gradients over the processes puts that right::

    dL/dθ = mean over processes of  (dL/dθ through its own part, with L computed by everyone)

In one process all functions here give back what they get.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 is the one that writes files and draws the progress bar."""
    return dist.get_rank() if processes() > 1 else 0


def gather(x: Tensor) -> Tensor:
    """(B, ...) of this process -> (B of all, ...), in the order of the processes; gradients flow back to their owners."""
    return _Gather.apply(x) if processes() > 1 else x


def gather_padded(x: Tensor, fill: int = 0) -> Tensor:
    """(B, T) -> (B of all, longest T of all), filled up: texts of several lengths."""
    if processes() == 1:
        return x
    longest = torch.tensor(x.shape[1], device=x.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return gather(nn.functional.pad(x, (0, int(longest) - x.shape[1]), value=fill))


def mean(x: Tensor) -> Tensor:
    """The mean over the processes, without gradients."""
    return total(x) / processes() if processes() > 1 else x


def total(x: Tensor) -> Tensor:
    """The sum over the processes, without gradients."""
    if processes() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def anyone(flag: bool, device: torch.device) -> bool:
    """Whether it is so in any process; all get the same answer."""
    return bool(flag) if processes() == 1 else bool(total(torch.tensor(int(bool(flag)), device=device)))


def agree_on(tensors: dict[str, Tensor]) -> None:
    """All processes take over what the first one has."""
    if processes() > 1:
        for _, tensor in sorted(tensors.items()):
            dist.broadcast(tensor.data, 0)


def wait() -> None:
    """Until all have come here."""
    if processes() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous()).chunk(processes())[rank()]
