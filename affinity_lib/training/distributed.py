"""Several processes that train one network as one process would: DDP over whole batches.

Each process (a rank) sees its share of a batch, and all see the same outputs, loss and gradient:

* the outputs of the shares are gathered, so every rank computes the loss of the whole batch;
* batch norm takes the statistics of the whole batch (``nn.SyncBatchNorm`` does not run on a CPU);
* dropout draws the mask of the whole batch, with the same numbers on every rank;
* DistributedDataParallel averages the ranks' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from affinity_lib.training import inputs


def rank() -> int:
    """The number of this process among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together; 1 outside of ``processes.launch``."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: Sequence[Any]) -> list[Any]:
    """This rank's items of a batch: every ``size()``-th, and the first again where one is short."""
    return [batch[k] for k in _places(len(batch))]


class Together(nn.Module):
    """A network that sees this rank's share of a batch and gives the outputs of the whole batch.

    Args:
        model: the same on every rank.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.ddp = DistributedDataParallel(
            _Seeing(model), forward_sync_buffers=False, find_unused_parameters=True
        )
        self.count = 0

    def whole(self, batch: Sequence[Any], count: int) -> list[Any]:
        """The share's input, and the targets of all ``count`` items of the batch."""
        self.count = count
        seen, target = batch
        return [seen, _Gather.apply(target, count)]

    def forward(self, seen: Tensor | list[Tensor]) -> Tensor:
        """The model's outputs for the whole batch, from the share's images or levels."""
        with _WholeBatch(self.count):
            output = self.ddp(seen)
        return _Gather.apply(output, self.count)

    from_levels = forward


class _Seeing(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, seen: Tensor | list[Tensor]) -> Tensor:
        return inputs.forward(self.model, seen)


def _places(count: int) -> list[int]:
    """Where this rank's share stands in a batch; all ranks have equally many places."""
    own = list(range(rank(), count, size()))
    return own + [0] * (-(-count // size()) - len(own))


def _real(count: int) -> int:
    """How many items of the share are its own, not there to fill it up."""
    return len(range(rank(), count, size()))


class _Gather(torch.autograd.Function):
    """The whole batch from the shares; its gradient is the share's, times what DDP divides by."""

    @staticmethod
    def forward(ctx, own: Tensor, count: int) -> Tensor:
        ctx.shape = own.shape
        parts = [
            torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())
        ]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_zeros(ctx.shape)
        rows = grad[rank() :: size()]
        own[: len(rows)] = rows * size()
        return own, None


class _BatchNorm(torch.autograd.Function):
    """Batch norm of the share with the statistics of the whole batch, summed in double precision.

    Also gives the mean and the unbiased variance, which the running statistics follow.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, count: int, eps: float):
        dims, values = [0, *range(2, x.ndim)], count * x[0, 0].numel()
        own = x[: _real(count)]
        mean = _sum(own.sum(dims, dtype=torch.double)) / values
        off = own - _along(mean, own)
        variance = _sum(off.square().sum(dims, dtype=torch.double)) / values
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.count, ctx.dims, ctx.values = count, dims, values
        unbiased = variance * (values / max(values - 1, 1))
        ctx.mark_non_differentiable(mean, unbiased)
        y = x * _along(scale * weight, x) + _along(bias - mean * scale * weight, x)
        return y, mean, unbiased

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        x, weight, mean, scale = ctx.saved_tensors
        normed = (x - _along(mean, x)) * _along(scale, x)
        parts = [(grad * normed).sum(ctx.dims, dtype=torch.double)]
        parts += [grad.sum(ctx.dims, dtype=torch.double)]
        of_weight, of_bias = _sum(torch.stack(parts)) / ctx.values
        own = grad - _along(of_bias, x) - normed * _along(of_weight, x)
        own = own * _along(scale * weight, x)
        own[_real(ctx.count) :] = 0
        return own, *(part.to(weight.dtype) for part in parts), None, None


def _sum(own: Tensor) -> Tensor:
    dist.all_reduce(own)
    return own


def _along(channels: Tensor, x: Tensor) -> Tensor:
    return channels.to(x.dtype).view([1, -1] + [1] * (x.ndim - 2))


class _WholeBatch(TorchFunctionMode):
    """Batch norm and dropout, of whatever module, act as on the whole batch of ``count`` items."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.batch_norm and kwargs.get("training"):
            return self._batch_norm(*args, **kwargs)
        if func in (F.dropout, F.dropout2d) and kwargs.get("training"):
            return self._dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(self, x, running_mean, running_var, weight, bias, training, momentum, eps):
        weight = x.new_ones(x.shape[1]) if weight is None else weight
        bias = x.new_zeros(x.shape[1]) if bias is None else bias
        y, mean, variance = _BatchNorm.apply(x.to(weight.dtype), weight, bias, self.count, eps)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(variance.to(running_var.dtype), momentum)
        return y.to(x.dtype)

    def _dropout(self, func, x, p, training, inplace):
        tail = x.shape[1:] if func is F.dropout else (x.shape[1], *(1 for _ in x.shape[2:]))
        ones = x.new_ones(self.count, *tail)
        if ones.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            ones = ones.contiguous(memory_format=torch.channels_last)
        return x * func(ones, p, training)[_places(self.count)]
