"""What an attack is: hyper-parameters at construction, images and eps at the call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sstune.registry import Registry
from sstune.schema import AttackConfig


class Attack(ABC):
    """Moves images so that the network errs; whose gradient it sees is decided by the caller."""

    def __init__(self, config: AttackConfig, seed: int) -> None:
        self.name = config.name
        self.seed = seed

    @abstractmethod
    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, eps: float, samples: Sequence[int]
    ) -> Tensor:
        """Adversarial images of the same shape.

        Args:
            network: images in [0,1] -> logits, in eval mode.
            images: (N, C, H, W) in [0,1], float32.
            labels: (N,) true classes.
            eps: radius of the Linf ball.
            samples: each image's index in its split, which keys its random numbers.
        """


# Constructors ``(config, seed) -> Attack``.
ATTACKS: Registry[Callable[..., Attack]] = Registry("attack.name")
