"""The training loop that all networks share: seeded, resumable, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from affinity_lib.errors import InputError
from affinity_lib.training.distributed import Together, rank, share, size
from affinity_lib.training.precision import autocast
from affinity_lib.training.processes import launch
from affinity_lib.training.progress import Progress
from affinity_lib.training.recipe import Recipe
from affinity_lib.training.state import TrainingState


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
    image alone, so a run that was stopped and started again ends with the same weights. With
    ``nproc`` processes each sees a share of every batch, under ``torchrun``; order of the images,
    augmentation, dropout and losses are those of one process, but for rounding.

    Args:
        model: with a ``backbone`` attribute, trained in place.
        samples: item k is ``(input, target)``.
        loss: maps the model and a batch on ``device`` to a scalar.
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
    batches = -(-len(samples) // recipe.batch_size)
    state = TrainingState(model, recipe, recipe.epochs * -(-batches // recipe.accumulate))
    history = state.restore(checkpoint, device)
    if nproc > 1 and len(history) < recipe.epochs:
        job = (model.cpu(), samples, loss, recipe, checkpoint, device.type, report_every)
        launch(nproc, device.type, Path(checkpoint).parent, fit, *job)
        model.to(device)
        history = state.restore(checkpoint, device)
    report_every = report_every or max(recipe.epochs // 5, 1)
    net = Together(model) if size() > 1 else model
    progress = Progress("training", recipe.epochs * len(samples), len(history) * len(samples))
    for epoch in range(len(history), recipe.epochs):
        torch.manual_seed(recipe.seed * 10_007 + epoch)
        mean = _epoch(net, samples, loss, epoch, state, device, progress)
        history.append(mean)
        if rank() > 0:
            continue
        state.save(checkpoint, history)
        if (epoch + 1) % report_every == 0 or epoch + 1 == recipe.epochs:
            print(f"epoch {epoch + 1:3d} of {recipe.epochs}: loss {mean:.3f}", flush=True)
    state.finish()
    return history


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits the images: a permutation fixed by seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
    return torch.randperm(length, generator=generator).tolist()


class _Seeded(Dataset):
    """Item k of an epoch with the random numbers of (seed, epoch, k), whatever process draws it."""

    def __init__(self, samples: Dataset, seed: int, epoch: int):
        self.samples, self.seed, self.epoch = samples, seed, epoch

    def __getitem__(self, k: int):
        with torch.random.fork_rng(devices=[]):
            # of the CPU alone: torch.manual_seed takes longer than a small image's augmentation
            torch.default_generator.manual_seed((self.seed * 10_007 + self.epoch) * 1_000_003 + k)
            return self.samples[k]

    def __len__(self) -> int:
        return len(self.samples)


def _epoch(net, samples, loss, epoch, state, device, progress) -> float:
    net.train()
    recipe = state.recipe
    order = epoch_order(len(samples), recipe.seed, epoch)
    batches = [order[k : k + recipe.batch_size] for k in range(0, len(order), recipe.batch_size)]
    loader = DataLoader(
        _Seeded(samples, recipe.seed, epoch),
        batch_sampler=[share(batch) for batch in batches],
        num_workers=-(-recipe.workers // size()),
    )
    total = 0.0
    for chunk in _chunks(zip(batches, loader, strict=True), recipe.accumulate):
        for places, batch in chunk:
            batch = _to(batch, device)
            if size() > 1:
                batch = net.whole(batch, len(places))
            with autocast(device, recipe.mixed_precision):
                value = loss(net, batch)
            if not torch.isfinite(value):
                raise InputError(
                    f"the loss is {value.item()} in epoch {epoch + 1}: lower lr ({recipe.lr:g})"
                )
            (value / len(chunk)).backward()
            total += value.item()
            progress.advance(len(places))
        state.step()
    return total / len(batches)


def _chunks(batches: Iterable, size: int) -> Iterator[list]:
    chunk = []
    for batch in batches:
        chunk.append(batch)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _to(batch, device):
    if isinstance(batch, Tensor):
        if batch.ndim == 4 and batch.is_floating_point():
            return batch.to(device, memory_format=torch.channels_last)
        return batch.to(device)
    return [_to(part, device) for part in batch]
