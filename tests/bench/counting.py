"""What a network takes on a GPU, counted without one: operations, and the memory of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

RESERVE = 1.5 * 2**30
"""GPU memory for CUDA itself, its workspaces and fragmentation."""


@dataclass(frozen=True)
class Training:
    """What training a network takes.

    Attributes:
        flops: operations an image and step; a multiplication and an addition are two.
        kept: bytes an image that autograd keeps for the backward pass in mixed precision.
        weights: how many the network has.
        learned: how many of them are not frozen.
    """

    flops: int
    kept: int
    weights: int
    learned: int

    def memory(self, batch: int, adam: bool, mixed_precision: bool) -> float:
        """Bytes on the GPU: weights, gradients, the optimizer's state and the kept values.

        Args:
            batch: images a forward pass.
            adam: Adam keeps two numbers a weight, SGD with momentum one.
            mixed_precision: weights are copied in half precision; without it, what is kept
                doubles.

        >>> round(Training(flops=0, kept=2**28, weights=2**20, learned=2**20).memory(
        ...     batch=8, adam=True, mixed_precision=True) / 2**30, 2)
        3.52
        """
        fixed = 4 * self.weights + 4 * self.learned * (3 if adam else 2)
        copies = 2 * self.weights if mixed_precision else 0
        return RESERVE + fixed + copies + batch * self.kept * (1 if mixed_precision else 2)

    def files(self, adam: bool) -> float:
        """Bytes of the saved network and of the checkpoint beside it."""
        return 4 * (2 * self.weights + self.learned * (2 if adam else 1))


def count_training(net: nn.Module, loss: Callable[[Tensor], Tensor], crop: int) -> Training:
    """Count a step of training on one image of ``crop`` x ``crop`` pixels.

    Args:
        net: on the device ``meta``; changed to half precision.
        loss: maps the network's output, in full precision, to a scalar.
        crop: side of the image.

    >>> net = nn.Conv2d(3, 4, 1, bias=False, device="meta")
    >>> count = count_training(net, lambda output: output.sum(), crop=10)
    >>> count.flops, count.learned  # forward, and backward to the weights
    (4800, 12)
    """
    net.to(torch.bfloat16).train()
    image = torch.empty(1, 3, crop, crop, device="meta", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter, _kept_values(net) as kept:
        loss(net(image).float()).backward()
    return Training(
        flops=counter.get_total_flops(),
        kept=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
        weights=sum(p.numel() for p in net.parameters()),
        learned=sum(p.numel() for p in net.parameters() if p.requires_grad),
    )


def count_forward(net: nn.Module, height: int, width: int) -> int:
    """Operations on one image of that size; ``net`` is on the device ``meta``.

    >>> count_forward(nn.Conv2d(3, 4, 1, bias=False, device="meta"), 5, 10)
    1200
    """
    image = torch.empty(1, 3, height, width, device="meta", dtype=next(net.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(image)
    return counter.get_total_flops()


@contextmanager
def _kept_values(net: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collect what autograd keeps for the backward pass, each value once, weights left out."""
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept.setdefault(storage, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
