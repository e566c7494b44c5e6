"""The training loop that all networks share: seeded, resumable, with the paper's schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from affinity_lib.distributed import Together, rank, share, size
from affinity_lib.errors import InputError
from affinity_lib.files import write_aside
from affinity_lib.precision import autocast
from affinity_lib.processes import launch
from affinity_lib.progress import Progress


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a forward pass.
        lr: learning rate of the backbone's weights, falling to zero as (1 - step / steps)^power.
        optimizer: ``"adam"`` (the paper) or ``"sgd"`` (the released code).
        lr_factors: on ``lr`` for backbone weights, backbone biases, new weights, new biases; the
            released code's are (1, 2, 10, 20).
        weight_decay: L2 penalty on weights; biases have none.
        momentum: of SGD.
        power: of the schedule.
        warmup: share of all steps in which the learning rate rises from zero, in [0, 1).
        accumulate: batches whose gradients make one step.
        mixed_precision: see ``precision.autocast``; float32 where the device has no bfloat16.
        workers: processes that load images; 0 loads in the main process.
        seed: of initial order, augmentation and dropout.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "adam"
    lr_factors: tuple[float, float, float, float] = (1, 1, 1, 1)
    weight_decay: float = 0.0
    momentum: float = 0.9
    power: float = 0.9
    warmup: float = 0.0
    accumulate: int = 1
    mixed_precision: bool = False
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise InputError(f"lr must be > 0, got {self.lr}")
        if len(self.lr_factors) != 4:
            raise InputError(
                "lr_factors must be four: of backbone weights, its biases, new weights and new "
                f"biases, got {list(self.lr_factors)}"
            )
        if self.workers < 0:
            raise InputError(f"workers must be >= 0, got {self.workers}")
        if self.optimizer not in ("adam", "sgd"):
            raise InputError(f"optimizer must be adam or sgd, got {self.optimizer!r}")


def fit(
    model: nn.Module,
    samples: Dataset,
    loss: Callable[[nn.Module, tuple], Tensor],
    recipe: Recipe,
    checkpoint: Path,
    device: torch.device | str = "cpu",
    report_every: int = 1,
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
        report_every: epochs between two printed lines.
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
    optimizer = build_optimizer(model, recipe)
    batches = -(-len(samples) // recipe.batch_size)
    steps = recipe.epochs * -(-batches // recipe.accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _factor(step / steps, recipe)
    )
    history = _restore(checkpoint, model, optimizer, schedule, recipe, device)
    if nproc > 1 and len(history) < recipe.epochs:
        job = (model.cpu(), samples, loss, recipe, checkpoint, device.type, report_every)
        launch(nproc, device.type, Path(checkpoint).parent, fit, *job)
        model.to(device)
        history = _restore(checkpoint, model, optimizer, schedule, recipe, device)
    net = Together(model) if size() > 1 else model
    progress = Progress("training", recipe.epochs * len(samples), len(history) * len(samples))
    for epoch in range(len(history), recipe.epochs):
        torch.manual_seed(recipe.seed * 10_007 + epoch)
        mean = _epoch(net, samples, loss, recipe, epoch, optimizer, schedule, device, progress)
        history.append(mean)
        if rank() > 0:
            continue
        _save(checkpoint, model, optimizer, schedule, recipe, history)
        if (epoch + 1) % report_every == 0 or epoch + 1 == recipe.epochs:
            print(f"epoch {epoch + 1:3d} of {recipe.epochs}: loss {mean:.3f}", flush=True)
    model.eval()
    return history


def _factor(progress: float, recipe: Recipe) -> float:
    rise = min((progress + 1e-3) / recipe.warmup, 1) if recipe.warmup else 1
    return rise * max(1 - progress, 0) ** recipe.power


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam or SGD with the recipe's four learning-rate groups; frozen parameters are left out."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = (not name.startswith("backbone."), name.endswith("bias"))
            groups.setdefault(kind, []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": recipe.lr * recipe.lr_factors[2 * is_new + is_bias],
            "weight_decay": 0.0 if is_bias else recipe.weight_decay,
        }
        for (is_new, is_bias), parameters in groups.items()
    ]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(settings, lr=recipe.lr, fused=True)
    return torch.optim.SGD(settings, lr=recipe.lr, momentum=recipe.momentum)


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


def _epoch(net, samples, loss, recipe, epoch, optimizer, schedule, device, progress) -> float:
    net.train()
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
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
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


def _save(path, model, optimizer, schedule, recipe, history) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": {"last_epoch": schedule.last_epoch},
        "recipe": asdict(recipe),
        "history": history,
    }
    # Through an open file: torch writes the name of a path into what it saves.
    with write_aside(path) as aside, aside.open("wb") as file:
        torch.save(state, file)


def _restore(path, model, optimizer, schedule, recipe, device) -> list[float]:
    if not Path(path).exists():
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        earlier, history, tensors = state["recipe"], state["history"], state["model"]
    except Exception as error:  # bytes that are no checkpoint can raise anything
        raise InputError(
            f"{path} is not a checkpoint that can be read ({type(error).__name__}): remove it"
        ) from error
    if {**asdict(recipe), "workers": 0} != {**earlier, "workers": 0}:
        return []
    if _shapes(model.state_dict()) != _shapes(tensors):
        return []
    groups = state["optimizer"]["param_groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimizer.param_groups]:
        return []  # other parts were frozen
    model.load_state_dict(tensors)
    optimizer.load_state_dict(state["optimizer"])
    schedule.last_epoch = state["schedule"]["last_epoch"]
    return history


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
