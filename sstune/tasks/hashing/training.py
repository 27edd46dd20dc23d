"""The training losses with their settings and their state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sstune.copying import to_device
from sstune.datasets import Batch, Splits
from sstune.schema import HashingConfig, HashLoss
from sstune.seeding import seed_from
from sstune.tasks.hashing import losses
from sstune.tasks.hashing.centres import class_centres, target_centres, tie_code


class HashingLoss(ABC):
    """A training loss of hashing; the base class has no state.

    Attributes:
        of_samples: whether it is a mean over samples; otherwise it compares the images of a batch.
    """

    of_samples = False

    def __init__(self, config: HashingConfig, n_classes: int) -> None:
        self.config = config
        self.n_classes = n_classes
        self.progress = 0.0

    def begin(self, splits: Splits, seed: int, device: torch.device) -> None:  # noqa: B027  # not all need it
        """Called once before training."""

    def follow(self, outputs: Tensor, batch: Batch) -> None:  # noqa: B027
        """Called with each training batch before its loss is computed."""

    @abstractmethod
    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of a batch, from the outputs f, (N, k)."""

    def parameters(self) -> Sequence[nn.Parameter]:
        """Parameters that are trained along with the network."""
        return ()

    def state(self) -> dict[str, Tensor]:
        """State between batches, by name; the tensors themselves."""
        return {}

    def weight(self, default: float) -> float:
        """The weight of the quantisation term."""
        return default if self.config.quantization is None else self.config.quantization


class Csq(HashingLoss):
    """Central similarity quantization (Yuan et al. 2020, arXiv 1908.00347)."""

    of_samples = True

    def begin(self, splits: Splits, seed: int, device: torch.device) -> None:
        self.centres = class_centres(self.config.bits, self.n_classes, seed).to(device)
        self.tie_code = tie_code(self.config.bits, seed).to(device)

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        centres = target_centres(batch.targets, self.centres, self.tie_code)
        return losses.csq(outputs, centres, self.weight(1e-4))


class Dpsh(HashingLoss):
    """Deep pairwise-supervised hashing (Li et al. 2016, arXiv 1511.03855), against a bank of outputs."""

    def begin(self, splits: Splits, seed: int, device: torch.device) -> None:
        self.targets = splits.train.targets.to(device)
        self.bank = torch.zeros(len(self.targets), self.config.bits, device=device)

    def follow(self, outputs: Tensor, batch: Batch) -> None:
        if self.config.bank:
            samples = to_device(batch.samples, self.bank.device)
            self.bank[samples] = outputs.detach().to(self.bank.dtype)

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        if not self.config.bank:
            similar = losses.similarity(batch.targets, batch.targets)
            return losses.dpsh_authors(outputs, similar, self.weight(0.01))
        similar = losses.similarity(batch.targets, self.targets)
        return losses.dpsh(outputs, self.bank, similar, self.weight(0.1))

    def state(self) -> dict[str, Tensor]:
        return {"bank": self.bank} if self.config.bank else {}


class HashNet(HashingLoss):
    """HashNet (Cao et al. 2017, arXiv 1702.00758), with pairs in the batch; beta grows from 1 to 2."""

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        similar = losses.similarity(batch.targets, batch.targets)
        beta = (1 + 3 * self.progress) ** 0.5
        return losses.hashnet(outputs, similar, beta, 10 / self.config.bits)


class Dch(HashingLoss):
    """Deep Cauchy hashing (Cao et al. 2018), with pairs in the batch, weighted by their share in training."""

    def begin(self, splits: Splits, seed: int, device: torch.device) -> None:
        targets = splits.train.targets.cpu()
        shares = [losses.similarity(part, targets).mean(1) for part in targets.split(1000)]
        self.share = float(torch.cat(shares).double().mean())

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        similar = losses.similarity(batch.targets, batch.targets)
        return losses.dch(outputs, similar, weight=self.weight(0.01), share=self.share)


class HyP2(HashingLoss):
    """HyP2 (Xu et al. 2022, ECCV): pairs in the batch, and a learned proxy of each class."""

    def begin(self, splits: Splits, seed: int, device: torch.device) -> None:
        proxies = torch.empty(self.n_classes, self.config.bits)
        draw = torch.Generator().manual_seed(seed_from(seed, "proxies"))
        nn.init.kaiming_normal_(proxies, mode="fan_out", generator=draw)
        self.proxies = nn.Parameter(proxies.to(device))
        self.margin = losses.hyp2_margin(self.config.bits, self.n_classes)

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        labels = batch.targets
        if labels.ndim == 1:
            labels = nn.functional.one_hot(labels, self.n_classes).to(outputs)
        return losses.hyp2(outputs, labels, self.proxies, self.margin)

    def parameters(self) -> Sequence[nn.Parameter]:
        return (self.proxies,)

    def state(self) -> dict[str, Tensor]:
        return {"proxies": self.proxies}


LOSS_CLASSES: dict[HashLoss, type[HashingLoss]] = {
    HashLoss.csq: Csq,
    HashLoss.dpsh: Dpsh,
    HashLoss.hashnet: HashNet,
    HashLoss.dch: Dch,
    HashLoss.hyp2: HyP2,
}
