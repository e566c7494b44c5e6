"""The training loop that all networks share: seeded, resumable, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from affinity_lib.data.progress import Progress, print_above
from affinity_lib.errors import InputError
from affinity_lib.training.cores import available_cores
from affinity_lib.training.parallel import START_METHOD, SpareCores
from affinity_lib.training.precision import autocast
from affinity_lib.training.processes import launch
from affinity_lib.training.recipe import Recipe
from affinity_lib.training.state import TrainingState

MOST_WORKERS = 8
"""Processes that load images for a GPU, at most."""


def fit(
    model: nn.Module,
    samples: Dataset,
    loss: Callable[[nn.Module, tuple], Tensor],
    recipe: Recipe,
    checkpoint: Path,
    device: torch.device | str = "cpu",
    report_every: int | None = None,
    nproc: int = 1,
) -> list[float]:
    """Train ``model``; go on from ``checkpoint`` where an earlier call with this recipe stopped.

    A checkpoint of another recipe or of a network of other shapes is not gone on from.

    The order of the images, their augmentation and dropout depend on the seed, the epoch and the
    image alone, whatever the number of workers. So on a CPU a training that was stopped and started again ends with the
    same weights, bit for bit, if it computes with as many threads (``SpareCores``), in the same
    process, too: a network that has been trained into this checkpoint begins there again. On a GPU
    it sees the same batches, but some of CUDA's and cuDNN's kernels sum in any order (the gradient
    of a bilinear resize is one of them), and the weights differ as those of two runs do.

    With ``nproc`` processes each has a share of every batch, and DistributedDataParallel averages
    their gradients. The batches are those of one process. Batch norm that is trained takes its
    statistics of the whole batch on GPUs and of each process's share on a CPU, and dropout draws
    other numbers: metrics agree within the spread of seeds.

    Args:
        model: with a ``backbone`` attribute, trained in place.
        samples: item k is ``(input, target)``. A method ``prepare``, if there is one, is called
            once ``model`` is on its device.
        loss: maps the model and a batch on ``device`` to a scalar, a mean over the batch.
        recipe: how to train.
        checkpoint: file that holds the state after the last finished epoch.
        device: where to compute.
        report_every: epochs between two printed lines; None for about five lines.
        nproc: processes that train together, on the cores of this machine or a GPU each. A
            training may be stopped with one number and go on with another.

    Returns:
        Mean loss of each epoch.

    Raises:
        InputError: nothing to train on, a loss that is not finite, a checkpoint that cannot be
            read, or more processes than GPUs.
        RuntimeError: one of several processes failed.
    """
    if nproc < 1:
        raise InputError(f"nproc must be >= 1, got {nproc}")
    if len(samples) == 0:
        raise InputError("there is no image to train on: the list of images is empty")
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last)
    if hasattr(samples, "prepare"):
        samples.prepare()
    if nproc > 1:  # leave the GPU to those that train
        model.cpu()
        torch.cuda.empty_cache()
    with _from_its_beginning(model, Path(checkpoint)):
        state = TrainingState(model, recipe, len(samples))
        history = state.restore(checkpoint)
        if len(history) < recipe.epochs:
            every = report_every or max(recipe.epochs // 5, 1)
            images, done = recipe.epochs * len(samples), len(history) * len(samples)
            with Progress(desc="training", total=images, initial=done) as progress:

                def report(images: int, line: str = "") -> None:
                    progress.update(images)
                    if line:
                        print_above(line)

                if nproc > 1:
                    job = (model, samples, loss, recipe, checkpoint, device.type, every)
                    launch(nproc, device.type, _train_together, job, report)
                    history = state.restore(checkpoint)
                else:
                    _train(state, history, samples, loss, checkpoint, device, every, report)
        state.finish()
        model.to(device)
    return history


_BEGUN: WeakKeyDictionary[nn.Module, dict[Path, dict[str, Tensor]]] = WeakKeyDictionary()
"""Network -> checkpoint -> the weights with which its training began, in the order of trainings."""

_LEFT: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Network -> how often its weights had been changed when its last training left it."""


@contextmanager
def _from_its_beginning(model: nn.Module, checkpoint: Path) -> Iterator[None]:
    """Bring a network that this process has trained back to where this training of it began.

    In a notebook a training is stopped, or changed, and its cell run again, but not the one above
    that builds the network. Trainings that came later begin with what comes of this one. Whoever
    has loaded other weights meanwhile begins with those.
    """
    model.zero_grad()  # of a step that was stopped
    begun = _BEGUN.setdefault(model, {})
    if _LEFT.get(model) != _changes(model):
        begun.clear()
    if checkpoint in begun:
        model.load_state_dict(begun[checkpoint])
        for later in list(begun)[list(begun).index(checkpoint) + 1 :]:
            del begun[later]
    else:
        weights = model.state_dict().items()
        begun[checkpoint] = {name: value.to("cpu", copy=True) for name, value in weights}
    try:
        yield
    finally:
        _LEFT[model] = _changes(model)


def _changes(model: nn.Module) -> int:
    return sum(parameter._version for parameter in model.parameters())


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits the images: a permutation fixed by seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
    return torch.randperm(length, generator=generator).tolist()


def loading_workers(device: torch.device, nproc: int = 1) -> int:
    """Processes that load images for each of those that train: none on a CPU, whose cores train,
    and as many as a GPU may want.

    >>> loading_workers(torch.device("cpu"))
    0
    """
    return min(available_cores() // nproc, MOST_WORKERS) if device.type == "cuda" else 0


def _train_together(model, samples, loss, recipe, checkpoint, device, report_every, report) -> None:
    """What each of several processes does."""
    model.to(device, memory_format=torch.channels_last)
    if device == "cuda":
        from timm.layers import convert_sync_batchnorm  # torch's forgets the ReLU in timm's

        model = convert_sync_batchnorm(model)
    state = TrainingState(model, recipe, len(samples))
    history = state.restore(checkpoint)
    _train(state, history, samples, loss, checkpoint, torch.device(device), report_every, report)


def _train(state, history, samples, loss, checkpoint, device, report_every, report) -> None:
    """The epochs that are missing in ``history``, which grows."""
    recipe, (rank, size) = state.recipe, _rank_and_size()
    epochs = range(len(history), recipe.epochs)
    objective = _Objective(state.model, loss)
    if size > 1:
        objective = DistributedDataParallel(objective, static_graph=True)
    pace = SpareCores() if device.type == "cpu" and size == 1 else nullcontext()
    with pace as cores, closing(_load(samples, recipe, epochs, device)) as loader:
        for epoch in epochs:
            torch.manual_seed((recipe.seed * 10_007 + epoch) * size + rank)  # for dropout
            mean = _epoch(objective, loader, epoch, len(samples), state, device, report, cores)
            history.append(mean)
            if rank > 0:
                continue
            state.save(checkpoint, history)
            if (epoch + 1) % report_every == 0 or epoch + 1 == recipe.epochs:
                report(0, f"epoch {epoch + 1:3d} of {recipe.epochs}: loss {mean:.3f}")


def _epoch(objective, loader, epoch, length, state, device, report, cores) -> float:
    """The mean loss of an epoch, in which all batches are trained on."""
    recipe, (rank, size) = state.recipe, _rank_and_size()
    batches = _batches(length, recipe, epoch)
    total = 0.0
    objective.train()
    for first in range(0, len(batches), recipe.accumulate):
        step = batches[first : first + recipe.accumulate]
        for batch in step:
            share = len(batch[rank::size]) * size / len(batch)  # of what DDP takes the mean of
            with autocast(device, recipe.mixed_precision):
                value = objective(_to(next(loader), device))
            if not torch.isfinite(value):
                raise InputError(
                    f"the loss is {value.item()} in epoch {epoch + 1}: lower lr ({recipe.lr:g})"
                )
            (share * value / len(step)).backward()
            total += share * value.item()
            if rank == 0:
                report(len(batch))
        state.step()
        if cores is not None:
            cores.after_step()
    if size > 1:
        sum_of_all = torch.tensor(total, dtype=torch.double, device=device)
        dist.all_reduce(sum_of_all)
        total = sum_of_all.item() / size
    return total / len(batches)


class _Objective(nn.Module):
    """The loss as a module, whose gradients DistributedDataParallel can average."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, tuple], Tensor]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: tuple) -> Tensor:
        return self.loss(self.model, batch)


def _rank_and_size() -> tuple[int, int]:
    """The number of this process among those that train together, and how many they are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _batches(length: int, recipe: Recipe, epoch: int) -> list[list[int]]:
    order = epoch_order(length, recipe.seed, epoch)
    return [order[k : k + recipe.batch_size] for k in range(0, length, recipe.batch_size)]


def _load(
    samples: Dataset, recipe: Recipe, epochs: Sequence[int], device: torch.device
) -> Iterator[list]:
    """This process's share of all batches of these epochs, from workers that stay."""
    rank, size = _rank_and_size()
    if recipe.workers is None:
        workers = loading_workers(device, size)
    else:
        workers = -(-recipe.workers // size)
    if START_METHOD == "spawn":  # a new process does not know what a notebook defines
        workers = 0
    shares = [
        [(epoch, k) for k in batch[rank::size] or batch[:1]]  # the first again where none is left
        for epoch in epochs
        for batch in _batches(len(samples), recipe, epoch)
    ]
    yield from DataLoader(
        _Seeded(samples, recipe.seed),
        batch_sampler=shares,
        num_workers=workers,
        multiprocessing_context=START_METHOD if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # and not the numbers of dropout
    )


class _Seeded(Dataset):
    """Item (epoch, k) with the random numbers of (seed, epoch, k), whatever process draws it."""

    def __init__(self, samples: Dataset, seed: int):
        self.samples, self.seed = samples, seed

    def __getitem__(self, place: tuple[int, int]):
        epoch, k = place
        with torch.random.fork_rng(devices=[]):
            # of the CPU alone: torch.manual_seed takes longer than a small image's augmentation
            torch.default_generator.manual_seed((self.seed * 10_007 + epoch) * 1_000_003 + k)
            return self.samples[k]


def _to(batch, device):
    if isinstance(batch, Tensor):
        images = batch.ndim == 4 and batch.is_floating_point()
        layout = torch.channels_last if images else torch.preserve_format
        return batch.to(device, non_blocking=True, memory_format=layout)
    return [_to(part, device) for part in batch]
