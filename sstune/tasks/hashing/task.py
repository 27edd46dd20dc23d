"""The task: real outputs f of k units, whose signs are the code of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sstune.datasets import Batch, Split, Splits
from sstune.retrieval import Codes, Labels, Ranked, RankSettings, average_precision, rank
from sstune.retrieval.order import stable_order
from sstune.schema import AttackLoss, HashingConfig, HashLoss, RequestError
from sstune.tasks.auditing import AuditProfile
from sstune.tasks.evaluation import predict
from sstune.tasks.hashing import reference as references
from sstune.tasks.hashing.losses import signs, similarity
from sstune.tasks.hashing.objectives import LOSSES, Displacement, Query, mainstay_code
from sstune.tasks.hashing.reference import DatabaseRanking, Reference
from sstune.tasks.hashing.training import LOSS_CLASSES
from sstune.tasks.neighbours import Neighbours
from sstune.tasks.objective import Goal, Objective
from sstune.tasks.score import Score
from sstune.tasks.task import TASKS, Task

SATURATED = 0.999  # |tanh f| from which an output counts as saturated
ROUNDING = 1e-3  # of an output, relative to the largest; below it a sign may change


@TASKS.register("hashing")
class Hashing(Task):
    """Image retrieval by binary codes.

    Predictions are the real outputs f, (N, k); the code is their sign, with sign(0) = 1. The score is the
    mean average precision of a ranking of the database by Hamming distance, in expectation over all orders of
    equal distances.
    """

    objectives = tuple(LOSSES)
    searches = True
    reference_file = "codes.npz"
    audit = AuditProfile(
        "hashing", "mainstay", AttackLoss.mainstay, AttackLoss.logits, squashing="tanh", outputs="outputs",
        not_applicable=("D7", "D12", "D13", "D14"),  # scores, probabilities, labels, success at a step
    )  # fmt: skip

    def __init__(self, config: HashingConfig, n_classes: int) -> None:
        self.config = config
        self.outputs = config.bits
        self.metric = f"mAP@{config.top_k or 'all'}"
        self.training = LOSS_CLASSES[HashLoss(config.loss)](config, n_classes)
        self.loss_of_samples = self.training.of_samples

    # Training

    def init_head(self, head: nn.Module) -> None:
        """Normal weights and no bias."""
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=self.config.head_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def begin_training(self, splits: Splits, seed: int, device: torch.device) -> None:
        self.training.begin(splits, seed, device)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.training.progress = epoch / max(1, epochs - 1)

    @property
    def lr_factors(self) -> dict[str, float]:
        return {"head": self.config.head_lr_factor}

    def parameters(self) -> Sequence[nn.Parameter]:
        return self.training.parameters()

    @property
    def lr_factor(self) -> float:
        return self.config.proxy_lr_factor

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        with torch.autocast(outputs.device.type, enabled=False):  # the products of outputs stay in float32
            return self.training(outputs.float(), batch)

    def training_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        self.training.follow(outputs, batch)
        return self.loss(outputs, batch)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.training.state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.training.state().items():
                value.copy_(state[name])

    # Evaluation

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs

    def changed(self, predictions: Tensor, others: Tensor) -> Tensor:
        allowed = ROUNDING * predictions.abs().amax()
        return ((predictions - others).abs() > allowed).any(1)

    def reference(
        self, network: nn.Module, splits: Splits, device: torch.device, split: Literal["val", "test"] = "test"
    ) -> Reference:
        """The codes of the database. For validation a sample of it, without the validation images."""
        assert splits.database is not None
        assert splits.indices is not None
        database = splits.database
        if split == "val":
            database = self._val_database(splits)
        outputs = self._encode(network, database, device)
        train = torch.empty(0, self.outputs)
        if split == "test":
            train = self._train_outputs(network, splits, outputs, device)
        return Reference(
            Codes.of(outputs),
            Labels.of(database.targets.cpu()),
            signs(train).to(torch.int8),
            splits.train.targets.cpu(),
            outputs if self.config.refined else None,
        )

    def _val_database(self, splits: Splits) -> Split:
        assert splits.database is not None
        assert splits.indices is not None
        others = (~torch.isin(splits.indices["database"], splits.indices["val"])).nonzero()[:, 0]
        return splits.database.take(others[: self.config.val_database])  # its order is random

    def _encode(self, network: nn.Module, split: Split, device: torch.device) -> Tensor:
        return predict(network, self, split, device, with_loss=False)[0]

    def _train_outputs(
        self, network: nn.Module, splits: Splits, outputs: Tensor, device: torch.device
    ) -> Tensor:
        """(M, k): those of the database's ``outputs``, if the training images are in it."""
        assert splits.indices is not None
        order = splits.indices["database"].argsort()
        known = splits.indices["database"][order]
        train = splits.indices["train"]
        where = torch.searchsorted(known, train).clamp(max=len(known) - 1)
        if torch.equal(known[where], train):
            return outputs[order[where]]
        return self._encode(network, splits.train, device)

    def save_reference(self, path: Path, reference: Reference, splits: Splits, model: str) -> None:
        references.save(path, reference, splits, model)

    def load_reference(self, path: Path, splits: Splits, model: str) -> Reference:
        return references.load(path, splits, model, self.config.refined)

    def score(self, predictions: Tensor, targets: Tensor, reference: Reference | None = None) -> Score:
        assert reference is not None
        refined = None if reference.outputs is None else (predictions, reference.outputs)
        settings = RankSettings(top=self.config.top_k, outputs=refined)
        queries = Codes.of(predictions), Labels.of(targets)
        found = rank(*queries, reference.codes, reference.labels, settings)
        saturated = float(_saturated(predictions).float().mean())
        more = {**self._figures(found, settings), "saturated": saturated}
        curves = {"precision at recall": found.precision_at_recall.mean(0).round(6).tolist()}
        each = torch.from_numpy(found.ap)
        return Score(float(each.mean()), len(each), each, more=more, curves=curves)

    def _figures(self, found: Ranked, settings: RankSettings) -> dict[str, float]:
        """Further figures, means over the queries."""
        suffix = self.metric.removeprefix("mAP")
        figures = {f"mAP_stable{suffix}": found.ap_stable, f"mAP_refined{suffix}": found.ap_refined}
        for column, n in enumerate(settings.cutoffs):
            figures |= {f"P@{n}": found.precision[:, column], f"R@{n}": found.recall[:, column]}
        figures |= {"P@radius2": found.precision_within, "NDCG@1000": found.ndcg}
        return {name: float(values.mean()) for name, values in figures.items() if values is not None}

    def neighbours(
        self, predictions: Tensor, reference: Reference, n: int, targets: Tensor | None = None
    ) -> Neighbours:
        """By Hamming distance, ties in the database's order."""
        codes, positions, distances = Codes.of(predictions), [], []
        for words in codes.words:
            away = reference.codes.distances(words)
            positions.append(stable_order(away, n))
            distances.append(away[positions[-1]])
        relevant = None
        if targets is not None:
            queries = map(Labels.of(targets).row, range(len(targets)))
            shared = [reference.labels.shared(query) for query in queries]
            relevant = np.array([found[at] > 0 for found, at in zip(shared, positions, strict=True)])
        return Neighbours(np.array(positions, np.int64), np.array(distances, np.int64), relevant)

    def bounds(self, predictions: Tensor, targets: Tensor, reference: Reference) -> Mapping[str, float]:
        """mAP of queries with a code of the attacker's choice: the opposite of their own, of the majority of
        their relevant training items, and of their mainstay code."""
        own = signs(predictions)
        train = reference.train.float()
        similar = similarity(targets, reference.train_targets)
        codes = {"own": own, "class vote": signs(similar @ train), "mainstay": mainstay_code(similar, train)}
        ranking = DatabaseRanking(reference, targets, self.config.top_k)
        return {f"bound {name}": float(ranking(-code).mean()) for name, code in codes.items()}

    # Audit

    def chance(self, targets: Tensor, reference: Reference, n_classes: int) -> float:
        """mAP of a database in random order, the share of relevant items or little more: that of codes which
        are all equal."""
        queries, database = (
            Codes.of(torch.zeros(n, self.outputs)) for n in (len(targets), len(reference.codes))
        )
        settings = RankSettings(top=self.config.top_k)
        found = average_precision(queries, Labels.of(targets.cpu()), database, reference.labels, settings)
        return float(found.mean())

    def floor(self, targets: Tensor, reference: Reference, n_classes: int) -> float:
        """As :meth:`chance`: an attack gets below it, but some relevant items are always found."""
        return self.chance(targets, reference, n_classes)

    def saturated(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(N,) share of outputs f whose tanh is above 0.999 in magnitude."""
        return _saturated(outputs).double().mean(1)

    # Attacks

    def objective(self, batch: Batch, goal: Goal, clean_outputs: Callable[[], Tensor]) -> Objective:
        name = goal.loss or self.objectives[0]
        if goal.target is not None:
            raise RequestError("attack.targeted: task=hashing has untargeted attacks only")
        outputs = clean_outputs().double()
        own = torch.tanh(outputs)
        reference: Reference = goal.reference
        query = Query(own, signs(own))
        if name in ("mainstay", "sdha"):
            train = reference.train.to(outputs.device, torch.float64)
            similar = similarity(batch.targets, reference.train_targets.to(outputs.device)).double()
            if name == "mainstay":
                query = Query(own, mainstay_code(similar, train))
            else:
                query = Query(own, signs(own), *_relevant_codes(signs(own), similar, train), batch.images)
        return Displacement(name, query, DatabaseRanking(reference, batch.targets, self.config.top_k))


def _saturated(outputs: Tensor) -> Tensor:
    """Which outputs are so large that tanh is flat."""
    return torch.tanh(outputs).abs() > SATURATED


def _relevant_codes(own: Tensor, similar: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """The different codes of the training items, (M, k), and how many of the items relevant to a query have
    each, (N, M). A query without relevant items has its own code."""
    codes, which = train.unique(dim=0, return_inverse=True)
    counts = similar.new_zeros(len(own), len(codes)).index_add_(1, which, similar)
    alone = (counts.sum(1) == 0).to(similar).diag()
    return torch.cat([codes, own]), torch.cat([counts, alone], 1)
