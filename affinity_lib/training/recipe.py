"""The recipe by which a network is trained: epochs, batches, rates and precision (section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass

from affinity_lib.errors import InputError


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
        ema_decay: of an exponential moving average of the weights, which the network ends with; 0
            ends with the last weights, as the paper does.
        workers: processes that load images; 0 loads in the main process, None chooses for the
            device (``loop.loading_workers``).
        seed: of initial order, augmentation and dropout; below 10^9.
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
    ema_decay: float = 0.0
    workers: int | None = None
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
        if min(self.lr_factors) < 0:
            raise InputError(f"lr_factors must be >= 0, got {list(self.lr_factors)}")
        for name in ("weight_decay", "momentum", "workers"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{name} must be >= 0, got {getattr(self, name):g}")
        for name in ("warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be >= 0 and < 1, got {getattr(self, name):g}")
        if not 0 <= self.seed < 10**9:
            raise InputError(f"seed must be >= 0 and < 10^9, got {self.seed}")
        if self.optimizer not in ("adam", "sgd"):
            raise InputError(f"optimizer must be adam or sgd, got {self.optimizer!r}")
