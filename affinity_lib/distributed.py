"""Several processes that train one network as one process would: ``torchrun``, DDP, gloo or NCCL.

Each process (a rank) sees its share of a batch, and all see the same outputs, loss and gradient:

* the outputs of the shares are gathered, so every rank computes the loss of the whole batch;
* batch norm takes the statistics of the whole batch (``nn.SyncBatchNorm`` does not run on a CPU);
* dropout draws the mask of the whole batch, with the same numbers on every rank;
* DistributedDataParallel averages the ranks' gradients.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from affinity_lib import inputs, progress
from affinity_lib.errors import InputError

_FAILED = "affinity_lib failed: "


def launch(
    nproc: int, device: str, folder: Path, function: Callable[..., Any], *arguments: Any
) -> None:
    """Call ``function(*arguments)`` in ``nproc`` processes on this machine, under ``torchrun``.

    What they print is printed here. All of them end when this call does, whether it returns,
    raises, is interrupted, or its process dies.

    Args:
        nproc: how many.
        device: "cpu", where they talk through gloo, or "cuda", a GPU each, through NCCL.
        folder: for the file that hands the call over; it is gone once they have read it.
        function: anything that cloudpickle takes, also from a notebook's cell.
        arguments: likewise; tensors on the CPU.

    Raises:
        InputError: one of them raised it, or there is no such device for each.
        RuntimeError: one of them failed otherwise; the text is its error.
    """
    there = torch.cuda.device_count() if device == "cuda" else nproc * (device == "cpu")
    if there < nproc:
        raise InputError(
            f"nproc = {nproc} needs {nproc} GPUs or device cpu, and {device} has {there}: "
            "lower nproc"
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".job.", suffix=".part") as job:
        with (Path(job) / "call").open("wb") as file:
            cloudpickle.dump((device, function, arguments), file)
        child = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
            + ["127.0.0.1", "--nproc-per-node", str(nproc), "-m", __name__, job],
            env=os.environ
            | {
                "OMP_NUM_THREADS": str(max(torch.get_num_threads() // nproc, 1)),
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            },
            stdin=subprocess.PIPE,  # when it ends, so do they
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        failures: list[list[str]] = []
        last: deque[str] = deque(maxlen=40)
        listener = Thread(target=_listen, args=(child.stderr, failures, last), daemon=True)
        listener.start()
        try:
            for line in child.stdout:
                print(line, end="", flush=True)
        finally:
            child.stdin.close()
            child.wait()
            listener.join()
    if failures:
        kind, text = failures[0]
        raise InputError(text) if kind == "InputError" else RuntimeError(f"{kind}: {text}")
    if child.returncode:
        signal = re.search(r"Signal \d+ \((\w+)\)", "\n".join(last))
        raise RuntimeError(
            f"one of the {nproc} processes that train together "
            + (
                f"was ended by {signal[1]}, as happens when memory runs out"
                if signal
                else next((f"failed: {line}" for line in reversed(last) if "Error" in line), "died")
            )
        )


def rank() -> int:
    """The number of this process among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together; 1 outside of :func:`launch`."""
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
            _Seeing(model), broadcast_buffers=False, find_unused_parameters=True
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
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_zeros(ctx.shape)
        rows = grad[rank() :: size()]
        own[: len(rows)] = rows * size()
        return own, None


class _Sum(torch.autograd.Function):
    """The sum over all ranks, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


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
        dims = [0, *range(2, x.ndim)]
        values = self.count * x[0, 0].numel()
        shape = [1, -1] + [1] * (x.ndim - 2)
        own = x[: _real(self.count)]
        own = own.float() if own.dtype == torch.bfloat16 else own
        mean = _Sum.apply(own.sum(dims)) / values
        variance = _Sum.apply((own - mean.view(shape)).square().sum(dims)) / values
        if running_mean is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance * (values / max(values - 1, 1)), momentum)
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        y = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        return (y if bias is None else y + bias.view(shape)).to(x.dtype)

    def _dropout(self, func, x, p, training, inplace):
        tail = x.shape[1:] if func is F.dropout else (x.shape[1], *(1 for _ in x.shape[2:]))
        ones = x.new_ones(self.count, *tail)
        if ones.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            ones = ones.contiguous(memory_format=torch.channels_last)
        return x * func(ones, p, training)[_places(self.count)]


def _listen(stream, failures: list[list[str]], last: deque[str]) -> None:
    for line in stream:
        if line.startswith(_FAILED):
            failures.append(json.loads(line.removeprefix(_FAILED)))
        elif line.strip():
            last.append(line.strip())


def _end_with_the_parent(job: Path) -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
    shutil.rmtree(job, ignore_errors=True)
    os._exit(1)


def _work(job: Path) -> None:
    """What each process does that ``torchrun`` starts."""
    Thread(target=_end_with_the_parent, args=(job,), daemon=True).start()
    try:
        if os.environ["RANK"] != "0":
            os.environ.pop(progress.FILE, None)  # one of them tells how far all of them are
        with (job / "call").open("rb") as file:
            kind, function, arguments = cloudpickle.load(file)
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        dist.barrier()
        (job / "call").unlink(missing_ok=True)
        function(*arguments)
        dist.destroy_process_group()
    except Exception as error:
        told = json.dumps([type(error).__name__, str(error)[:1000]])
        os.write(2, f"\n{_FAILED}{told}\n".encode())  # in one piece, whatever others write
        os._exit(1)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
