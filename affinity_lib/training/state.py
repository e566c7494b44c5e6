"""Where a training stands: weights, their average, optimizer, schedule; a checkpoint holds them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from affinity_lib.data.files import write_aside
from affinity_lib.errors import InputError
from affinity_lib.training.recipe import Recipe


class TrainingState:
    """A network's weights and all that changes with them, step by step.

    Args:
        model: trained in place, on its device.
        recipe: how it is trained.
        images: how many there are to train on.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, images: int) -> None:
        self.model, self.recipe = model, recipe
        batches = -(-images // recipe.batch_size)
        steps = recipe.epochs * -(-batches // recipe.accumulate)
        self.optimizer = build_optimizer(model, recipe)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _lr_factor(step / steps, recipe)
        )
        self.ema = None
        if recipe.ema_decay:
            move = get_ema_multi_avg_fn(recipe.ema_decay)
            self.ema = AveragedModel(model, multi_avg_fn=move, use_buffers=True)

    def step(self) -> None:
        """Change the weights by the gradients that have been summed up, which end at none."""
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def finish(self) -> None:
        """Give the network the weights that it ends with, in ``eval`` mode."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.model.eval()

    def save(self, path: Path, history: list[float]) -> None:
        """Write the checkpoint of these epochs, each with its mean loss."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "ema": {} if self.ema is None else self.ema.state_dict(),
            "recipe": asdict(self.recipe),
            "history": history,
        }
        # Through an open file: torch writes the name of a path into what it saves.
        with write_aside(path) as aside, aside.open("wb") as file:
            torch.save(state, file)

    def restore(self, path: Path) -> list[float]:
        """Go on from a checkpoint of the same recipe and of a network of the same shapes.

        Returns:
            The mean losses of its epochs, none if there is no such checkpoint.

        Raises:
            InputError: a file that is no checkpoint.
        """
        if not Path(path).exists():
            return []
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            earlier, history, tensors = state["recipe"], state["history"], state["model"]
        except Exception as error:  # bytes that are no checkpoint can raise anything
            raise InputError(
                f"{path} is not a checkpoint that can be read ({type(error).__name__}): remove it"
            ) from error
        if {**asdict(self.recipe), "workers": 0} != {**earlier, "workers": 0}:
            return []
        if _shapes(self.model.state_dict()) != _shapes(tensors):
            return []
        groups, own = state["optimizer"]["param_groups"], self.optimizer.param_groups
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
            return []  # other parts were frozen
        self.model.load_state_dict(tensors)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        return history


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


def _lr_factor(progress: float, recipe: Recipe) -> float:
    rise = min((progress + 1e-3) / recipe.warmup, 1) if recipe.warmup else 1
    return rise * max(1 - progress, 0) ** recipe.power


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
