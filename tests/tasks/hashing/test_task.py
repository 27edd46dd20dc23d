"""The task hashing: reference, score, bounds, training of head, bank and proxies, and the kept codes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hash_oracles as oracle
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sstune import backbones, rules, tasks, training
from sstune.commands import train as commands_train
from sstune.commands.lineage import Source
from sstune.commands.references import reference_of, write_reference
from sstune.composition import compose
from sstune.datasets import Batch, Split, Splits, retrieval_splits
from sstune.retrieval import Codes, Labels
from sstune.schema import BrsfConfig, HashingConfig, HashLoss, Redraw, RequestError, RunConfig, SplitConfig
from sstune.storage import file_digest
from sstune.tasks import Score
from sstune.tasks.hashing import Hashing
from sstune.tasks.hashing.reference import Reference
from sstune.training.distributed import ALONE
from sstune.training.step import Step

CPU = torch.device("cpu")
BITS = 8
CONFIG = HashingConfig("hashing", bits=BITS)
LOSSES = [str(loss) for loss in HashLoss]
PAIRWISE = ["dpsh", "hashnet", "dch", "hyp2"]


class Digits(nn.Module):
    """The code of an image is its number, which its pixels spell in binary; counts what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return 2 * images.flatten(1) - 1


def numbers(signs: Tensor) -> list[int]:
    """The images that have these codes, (N, 8) of -1 and 1."""
    powers = 2 ** torch.arange(BITS)
    return ((signs > 0).long() @ powers).tolist()


def numbered(first: int, n: int, several: bool = False) -> Split:
    index = torch.arange(first, first + n)
    images = (index[:, None] >> torch.arange(BITS)) % 2 * 255
    targets = index % 3
    if several:
        targets = torch.stack([index % 2 == 0, index % 3 == 0, index % 5 == 0], 1).float()
    return Split(images.byte().reshape(n, 1, 2, 4), targets)


def splits_of(protocol: str = "cifar10-1", several: bool = False, seed: int = 0) -> Splits:
    """200 images in three classes, or with three labels, whose place in the pool is their number."""
    parts = numbered(0, 120, several), numbered(120, 20, several), numbered(140, 60, several)
    whole = Splits(*parts, ["a", "b", "c"])
    config = SplitConfig(protocol=protocol, n_query=4, n_train=10, n_val=5, seed=seed)
    return retrieval_splits(whole, config)


class TestReference:
    @pytest.mark.parametrize("several", [False, True])
    def test_has_the_codes_and_labels_of_the_database_in_its_order(self, several: bool) -> None:
        splits = splits_of(several=several)
        assert splits.database is not None
        assert splits.indices is not None
        found = Hashing(CONFIG, 3).reference(Digits(), splits, CPU)
        expected = splits.indices["database"].tolist()
        assert numbers(torch.from_numpy(found.codes.signs())) == expected
        assert sorted(expected) != expected  # its order is random
        packed = [np.packbits([(number >> bit) & 1 for bit in range(BITS)]) for number in expected]
        assert np.array_equal(found.codes.packed, np.stack(packed))
        labels = found.labels.hot().astype(np.float32) if several else found.labels.values
        assert np.array_equal(labels, splits.database.targets.numpy())
        assert torch.equal(found.train_targets, splits.train.targets)
        assert numbers(found.train) == splits.indices["train"].tolist()
        assert found.outputs is None

    def test_takes_the_training_codes_from_the_database_that_contains_them(self) -> None:
        splits, network = splits_of("cifar10-1"), Digits()
        assert splits.database is not None
        Hashing(CONFIG, 3).reference(network, splits, CPU)
        assert network.seen == len(splits.database)

    @pytest.mark.parametrize("protocol", ["cifar10-0", "cifar10-authors"])
    def test_encodes_them_where_it_does_not(self, protocol: str) -> None:
        splits, network = splits_of(protocol), Digits()
        assert splits.database is not None
        assert splits.indices is not None
        found = Hashing(CONFIG, 3).reference(network, splits, CPU)
        assert network.seen == len(splits.database) + len(splits.train)
        assert numbers(found.train) == splits.indices["train"].tolist()

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("limit", [None, 1, 20, 1000])
    def test_for_validation_lacks_its_images_and_is_limited(self, limit: int | None, seed: int) -> None:
        splits = splits_of(seed=seed)
        assert splits.indices is not None
        database, val = splits.indices["database"].tolist(), splits.indices["val"].tolist()
        assert set(val) <= set(database)
        task = Hashing(replace(CONFIG, val_database=limit), 3)
        found = task.reference(Digits(), splits, CPU, "val")
        others = [number for number in database if number not in val]
        assert numbers(torch.from_numpy(found.codes.signs())) == others[:limit]
        assert found.labels.values.tolist() == [number % 3 for number in others[:limit]]
        assert len(found.train) == 0

    def test_keeps_outputs_only_where_they_break_ties(self) -> None:
        splits = splits_of()
        found = Hashing(replace(CONFIG, refined=True), 3).reference(Digits(), splits, CPU)
        assert found.outputs is not None
        assert numbers(found.outputs) == numbers(torch.from_numpy(found.codes.signs()))

    def test_leaves_the_networks_mode(self) -> None:
        network = Digits().train()
        Hashing(CONFIG, 3).reference(network, splits_of(), CPU)
        assert network.training


class Scene:
    """Queries and a database of 130 items with many ties."""

    def __init__(self, several: bool, top: int | None = None, refined: bool = False) -> None:
        stream = np.random.default_rng(11)
        self.queries, self.database = stream.normal(0, 1.5, (7, BITS)), stream.normal(0, 1, (130, BITS))
        self.queries[:, 0] *= 40  # saturated
        self.train = np.where(stream.random((15, BITS)) < 0.5, -1, 1)
        shapes = [(7, 4), (130, 4), (15, 4)]
        if several:
            self.targets, self.labels, self.train_labels = (
                (stream.random(shape) < 0.4).astype(np.float32) for shape in shapes
            )
            self.targets[3] = 0  # relevant to nothing
        else:
            self.targets, self.labels, self.train_labels = (stream.integers(0, 4, n) for n, _ in shapes)
            self.targets[3] = 9
        self.top, self.several = top, several
        self.task = Hashing(replace(CONFIG, top_k=top, refined=refined), 4)
        outputs = torch.tensor(self.database)
        self.reference = Reference(
            Codes.of(outputs),
            Labels.of(torch.tensor(self.labels)),
            torch.tensor(self.train, dtype=torch.int8),
            torch.tensor(self.train_labels),
            outputs if refined else None,
        )

    def score(self) -> Score:
        return self.task.score(torch.tensor(self.queries), torch.tensor(self.targets), self.reference)

    def distances(self, query: int) -> list[int]:
        own = oracle.code(self.queries[query].tolist())
        return [oracle.hamming(own, oracle.code(row)) for row in self.database.tolist()]

    def relevant(self, query: int) -> list[bool]:
        target = self.targets[query].tolist()
        return [oracle.related(target, other) for other in self.labels.tolist()]

    def in_order(self, query: int, key: Callable[[int], Any]) -> float:
        """AP of a list sorted by distance, then ``key``."""
        distances = self.distances(query)
        order = sorted(range(130), key=lambda item: (distances[item], key(item), item))
        hits = [self.relevant(query)[item] for item in order[: self.top]]
        return oracle.average_precision(range(len(hits)), hits)

    def apart(self, query: int) -> Callable[[int], float]:
        """Squared distance of the normalised outputs."""
        unit = self.queries[query] / np.linalg.norm(self.queries[query])
        return lambda item: float(
            ((self.database[item] / np.linalg.norm(self.database[item]) - unit) ** 2).sum()
        )

    def expected_hits(self, query: int, n: int) -> float:
        """Each item counts by the probability that it is among the first n."""
        distances, total = self.distances(query), 0.0
        for distance, hit in zip(distances, self.relevant(query), strict=True):
            before = sum(other < distance for other in distances)
            total += hit * min(1.0, max(0, n - before) / distances.count(distance))
        return total

    def precision_at_recall(self, query: int, level: int) -> float:
        """After the first whole radius with that recall, in hundredths."""
        distances, relevant = self.distances(query), self.relevant(query)
        for radius in range(BITS + 1):
            inside = [hit for d, hit in zip(distances, relevant, strict=True) if d <= radius]
            if sum(relevant) and 100 * sum(inside) >= level * sum(relevant):
                return sum(inside) / len(inside)
        return 0.0


def mean_of(value: Callable[[int], float]) -> float:
    return math.fsum(value(query) for query in range(7)) / 7


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("top", [None, 10, 60])
class TestScore:
    def test_is_mean_average_precision(self, several: bool, top: int | None) -> None:
        scene = Scene(several, top)
        score = scene.score()
        each = [
            oracle.average_precision(scene.distances(query), scene.relevant(query), top) for query in range(7)
        ]
        assert score.each is not None
        assert score.each.tolist() == pytest.approx(each, abs=1e-12)
        assert each[3] == 0  # and stays in the mean
        assert score.value == pytest.approx(math.fsum(each) / 7, abs=1e-12)
        assert (score.n, score.correct) == (7, None)

    def test_further_figures_by_brute_force(self, several: bool, top: int | None) -> None:
        scene, at = Scene(several, top, refined=True), f"@{top or 'all'}"
        expected = {
            f"mAP_stable{at}": mean_of(lambda query: scene.in_order(query, lambda item: item)),
            f"mAP_refined{at}": mean_of(lambda query: scene.in_order(query, scene.apart(query))),
            "P@radius2": mean_of(lambda query: self.within(scene, query)),
            "saturated": float((np.abs(np.tanh(scene.queries)) > 0.999).mean()),
        }
        for n in range(100, 1001, 100):
            hits = [scene.expected_hits(query, n) for query in range(7)]
            expected[f"P@{n}"] = math.fsum(hits) / 7 / min(n, 130)
            shares = [h / max(1, sum(scene.relevant(query))) for query, h in enumerate(hits)]
            expected[f"R@{n}"] = math.fsum(shares) / 7
        if several:
            expected["NDCG@1000"] = mean_of(lambda query: self.ndcg(scene, query))
        found = dict(scene.score().more)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, abs=1e-7)
        assert 0 < found["saturated"] < 1
        plain = Scene(several, top).score().more
        assert plain == {key: value for key, value in found.items() if "refined" not in key}

    def within(self, scene: Scene, query: int) -> float:
        inside = [
            hit
            for distance, hit in zip(scene.distances(query), scene.relevant(query), strict=True)
            if distance <= 2
        ]
        return sum(inside) / len(inside) if inside else 0.0

    def ndcg(self, scene: Scene, query: int) -> float:
        distances = scene.distances(query)
        gains = [2 ** float((row * scene.targets[query]).sum()) - 1 for row in scene.labels]
        found = 0.0
        for distance in set(distances):
            before, n = sum(d < distance for d in distances), distances.count(distance)
            group = [gain for gain, d in zip(gains, distances, strict=True) if d == distance]
            found += sum(group) / n * sum(1 / math.log2(2 + before + place) for place in range(n))
        best = sum(gain / math.log2(2 + rank) for rank, gain in enumerate(sorted(gains, reverse=True)))
        return found / best if best else 0.0

    def test_curve_is_the_mean_precision_at_each_recall(self, several: bool, top: int | None) -> None:
        scene = Scene(several, top)
        curve = scene.score().curves["precision at recall"]
        expected = [
            mean_of(lambda query: scene.precision_at_recall(query, level))  # noqa: B023
            for level in range(1, 101)
        ]
        assert curve == pytest.approx(expected, abs=1e-6)
        assert json.loads(json.dumps(scene.score().fields("mAP")))["curves"] == scene.score().curves

    def test_bounds_are_of_the_opposite_codes(self, several: bool, top: int | None) -> None:
        scene = Scene(several, top)
        train = scene.train.tolist()
        values: dict[str, list[float]] = {"own": [], "class vote": [], "mainstay": []}
        for query in range(7):
            target = scene.targets[query].tolist()
            relevant = [oracle.related(target, other) for other in scene.train_labels.tolist()]
            codes = {
                "own": oracle.code(scene.queries[query].tolist()),
                "class vote": [
                    1 if sum(row[bit] for row, hit in zip(train, relevant, strict=True) if hit) >= 0 else -1
                    for bit in range(BITS)
                ],
                "mainstay": oracle.mainstay_code(relevant, train),
            }
            for name, code in codes.items():
                opposite = [-bit for bit in code]
                database = [oracle.code(row) for row in scene.database.tolist()]
                values[name].append(oracle.ap_of(opposite, target, database, scene.labels.tolist(), top))
        found = scene.task.bounds(torch.tensor(scene.queries), torch.tensor(scene.targets), scene.reference)
        expected = {f"bound {name}": math.fsum(each) / 7 for name, each in values.items()}
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("top", "name"), [(None, "mAP@all"), (5000, "mAP@5000"), (1, "mAP@1")])
def test_the_metrics_name_has_its_k(top: int | None, name: str) -> None:
    assert tasks.build(replace(CONFIG, top_k=top), 3).metric == name


def test_rounding_is_no_change_of_a_prediction() -> None:
    outputs = torch.tensor([[2.0, -1.0], [1e-6, 0.5], [0.3, 0.3]])
    others = torch.tensor([[2.0, -1.001], [-1e-6, 0.5], [0.3, -0.3]])
    assert Hashing(CONFIG, 3).changed(outputs, others).tolist() == [False, False, True]


# Training


def configured(*overrides: str) -> RunConfig:
    line = ["dataset=digits", "task=hashing", "task.bits=8", "backbone=mlp", "backbone.hidden=[24]"]
    return compose("train", [*line, "threads=1", "device=cpu", *overrides])


def learner_of(config: RunConfig, splits: Splits) -> training.Learner:
    torch.manual_seed(config.seed)
    return commands_train.build(config, None, splits, CPU, ALONE)[0]


def batch_of(split: Split, *positions: int) -> Batch:
    index = torch.tensor(positions)
    assert isinstance(split.images, Tensor)
    return Batch(split.images[index] / 255, split.targets[index], index)


class TestHead:
    def test_starts_normal_and_without_bias(self) -> None:
        splits = splits_of()
        for std in (0.1, 0.01, 2.0):
            config = configured("backbone.hidden=[300]", f"task.head_std={std}")
            head: Any = learner_of(config, splits).network.heads[0]
            weights = head.weight.detach().flatten().sort().values.double()
            assert len(weights) == 2400
            uniform = torch.special.ndtr(weights / std)  # Kolmogorov's statistic of 2400 draws
            steps = (torch.arange(2400, dtype=torch.float64) + 0.5) / 2400
            assert float((uniform - steps).abs().max()) < 1.63 / math.sqrt(2400)
            assert not head.bias.any()

    def test_alone_does(self) -> None:
        """Other layers are those of the same backbone for classification."""
        splits, config = splits_of(), configured()
        torch.manual_seed(config.seed)
        plain = backbones.build(config.backbone, splits.shape, 8, config.dataset.mean, config.dataset.std)
        found = learner_of(config, splits).network
        for name, value in plain.backbone.state_dict().items():
            same = torch.equal(value, found.backbone.state_dict()[name])
            assert same == (name != "head.weight"), name

    def test_convolutions_count_as_well(self) -> None:
        head = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 8, bias=False))
        before = copy.deepcopy(head.state_dict())
        torch.manual_seed(0)
        Hashing(replace(CONFIG, head_std=5.0), 3).init_head(head)
        assert float(head[0].weight.detach().std()) > 3
        assert float(head[2].weight.detach().std()) > 3
        assert not head[0].bias.any()
        for name in ("1.weight", "1.bias", "1.running_var"):
            assert torch.equal(head.state_dict()[name], before[name])


class TestLearningRates:
    @staticmethod
    def factor(learner: training.Learner, parameter: Tensor) -> float:
        (found,) = (
            group["lr_factor"]
            for group in learner.optimizer.param_groups
            if any(parameter is each for each in group["params"])
        )
        return float(found)

    def test_of_the_head_has_the_tasks_factor_unless_it_is_named(self) -> None:
        splits = splits_of()
        for overrides, head, stem in (
            ([], 10.0, 1.0),
            (["task.head_lr_factor=3"], 3.0, 1.0),
            (["optimizer.lr_factors={head:4}"], 4.0, 1.0),
            (["optimizer.lr_factors={stem:0.5}"], 10.0, 0.5),
        ):
            learner = learner_of(configured(*overrides), splits)
            layers = dict(learner.network.backbone.named_parameters())
            assert self.factor(learner, layers["head.weight"]) == head, overrides
            assert self.factor(learner, layers["head.bias"]) == head
            assert self.factor(learner, layers["hidden1.weight"]) == stem

    @pytest.mark.parametrize("factor", [100.0, 7.0])
    def test_of_proxies_is_their_own_and_they_are_trained(self, factor: float) -> None:
        splits = splits_of()
        overrides = ["task.loss=hyp2", "optimizer.momentum=0", "optimizer.nesterov=false"]
        config = configured(*overrides, "optimizer.weight_decay=0", f"task.proxy_lr_factor={factor}")
        learner = learner_of(config, splits)
        (proxies,) = learner.task.parameters()
        assert self.factor(learner, proxies) == factor
        assert proxies.shape == (3, BITS)
        before = proxies.detach().clone()
        for group in learner.optimizer.param_groups:
            group["lr"] = 0.01 * group["lr_factor"]
        Step(learner, 6)(batch_of(splits.train, *range(6)), 6)
        assert proxies.grad is not None
        assert proxies.grad.any()
        torch.testing.assert_close(proxies.detach(), before - 0.01 * factor * proxies.grad)
        state = learner.task.state_dict()
        assert torch.equal(state["proxies"], proxies)
        assert not state["proxies"].requires_grad

    def test_without_proxies_there_is_nothing_else_to_train(self) -> None:
        for loss in ("csq", "dpsh", "hashnet", "dch"):
            learner = learner_of(configured(f"task.loss={loss}"), splits_of())
            trained = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
            assert trained == {id(p) for p in learner.network.parameters()}


class TestBf16:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_outputs_are_multiplied_in_float32(self, loss: str) -> None:
        splits = splits_of()
        task = Hashing(replace(CONFIG, loss=HashLoss(loss)), 3)
        task.begin_training(splits, 0, CPU)
        task.begin_epoch(3, 5)
        batch = batch_of(splits.train, *range(12))
        torch.manual_seed(0)
        outputs = torch.randn(12, BITS).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            found = task.training_loss(outputs, batch)
        expected = task.loss(outputs.float(), batch)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        exact = task.loss(outputs.double(), batch)
        assert found.item() == pytest.approx(exact.item(), rel=1e-6)

    def test_a_step_keeps_the_bank_in_float32(self) -> None:
        splits = splits_of()
        learner = learner_of(configured("task.loss=dpsh", "precision=bf16"), splits)
        loss, score = Step(learner, 6)(batch_of(splits.train, *range(6)), 6)
        bank = learner.task.state_dict()["bank"]
        assert bank.dtype == loss.dtype == torch.float32
        assert bank[:6].any()
        assert torch.equal(bank, bank.bfloat16().float())  # of outputs in bf16
        assert score.isnan()


class TestBank:
    def test_follows_training_batches_only(self) -> None:
        splits = splits_of()
        task = Hashing(replace(CONFIG, loss=HashLoss.dpsh), 3)
        task.begin_training(splits, 0, CPU)
        bank = task.state_dict()["bank"]
        assert bank.shape == (len(splits.train), BITS)
        assert not bank.any()
        torch.manual_seed(0)
        outputs = torch.randn(3, BITS, requires_grad=True)
        task.training_loss(outputs, batch_of(splits.train, 7, 2, 29))
        expected = torch.zeros(len(splits.train), BITS)
        expected[[7, 2, 29]] = outputs.detach()
        assert torch.equal(bank, expected)
        task.loss(torch.randn(3, BITS), batch_of(splits.val, 0, 1, 2))
        reference = task.reference(Digits(), splits, CPU, "val")
        tasks.evaluate(Digits(), task, splits.val, CPU, reference)
        assert torch.equal(task.state_dict()["bank"], expected)
        newer = torch.randn(2, BITS)
        task.training_loss(newer, batch_of(splits.train, 2, 0))
        expected[[2, 0]] = newer
        assert torch.equal(task.state_dict()["bank"], expected)

    def test_the_loss_is_against_the_whole_bank_with_the_newest_outputs(self) -> None:
        splits = splits_of()
        task = Hashing(replace(CONFIG, loss=HashLoss.dpsh), 3)
        task.begin_training(splits, 0, CPU)
        torch.manual_seed(0)
        first, second = torch.randn(2, 3, BITS).unbind()
        task.training_loss(first, batch_of(splits.train, 5, 6, 7))
        found = task.training_loss(second, batch_of(splits.train, 6, 8, 9))
        bank = {5: first[0], 7: first[2], 6: second[0], 8: second[1], 9: second[2]}
        total = 0.0
        for own, number in zip(second.double(), (6, 8, 9), strict=True):
            for other in range(len(splits.train)):
                t = float(own @ bank.get(other, torch.zeros(BITS)).double()) / 2
                similar = int(splits.train.targets[number]) == int(splits.train.targets[other])
                total += math.log1p(math.exp(-abs(t))) + max(t, 0) - similar * t
        sign = torch.where(second >= 0, 1.0, -1.0)
        expected = total / 3 / len(splits.train) + 0.1 * float(((sign - second).double() ** 2).mean())
        assert float(found) == pytest.approx(expected, rel=1e-6)

    def test_is_restored_in_place(self) -> None:
        splits = splits_of()
        one, other = (Hashing(replace(CONFIG, loss=HashLoss.dpsh), 3) for _ in range(2))
        for task in (one, other):
            task.begin_training(splits, 0, CPU)
        torch.manual_seed(0)
        one.training_loss(torch.randn(3, BITS), batch_of(splits.train, 1, 2, 3))
        other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
        outputs, batch = torch.randn(2, BITS), batch_of(splits.train, 4, 1)
        assert torch.equal(one.training_loss(outputs, batch), other.training_loss(outputs, batch))
        assert torch.equal(one.state_dict()["bank"], other.state_dict()["bank"])

    def test_the_authors_loss_has_none(self) -> None:
        task = Hashing(replace(CONFIG, loss=HashLoss.dpsh, bank=False), 3)
        task.begin_training(splits_of(), 0, CPU)
        assert task.state_dict() == {}


def test_the_seed_decides_on_centres_and_proxies() -> None:
    def losses(loss: str, seed: int) -> float:
        splits = splits_of()
        task = Hashing(replace(CONFIG, loss=HashLoss(loss)), 3)
        task.begin_training(splits, seed, CPU)
        torch.manual_seed(0)
        return task.loss(torch.randn(6, BITS), batch_of(splits.train, *range(6))).item()

    for loss in ("csq", "hyp2"):
        assert losses(loss, 0) == losses(loss, 0)
        assert losses(loss, 0) != losses(loss, 1)


def test_hashnet_sharpens_from_1_to_2_over_the_epochs() -> None:
    splits = splits_of()
    task = Hashing(replace(CONFIG, loss=HashLoss.hashnet), 3)
    torch.manual_seed(0)
    outputs, batch = torch.randn(6, BITS).double(), batch_of(splits.train, *range(6))
    similar = torch.tensor([[float(a == b) for b in batch.targets] for a in batch.targets]).double()
    share = float(similar.mean())
    for epoch, epochs, beta in ((0, 1, 1.0), (0, 9, 1.0), (4, 9, math.sqrt(2.5)), (8, 9, 2.0)):
        task.begin_epoch(epoch, epochs)
        relaxed = torch.tanh(beta * outputs)
        t = 10 / BITS * relaxed @ relaxed.T
        each = torch.log1p(t.exp()) - similar * t
        expected = (each * torch.where(similar > 0, 1 / share, 1 / (1 - share))).mean()
        assert float(task.loss(outputs, batch)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_losses_of_single_images_may_divide_a_batch(loss: str) -> None:
    learner = learner_of(configured(f"task.loss={loss}", "accumulate=2"), splits_of())
    if loss not in PAIRWISE:
        assert learner.task.loss_of_samples
        Step(learner, 8)
        return
    said = (
        r"accumulate: the loss of this hashing task compares the images of a batch, which cannot be divided"
    )
    with pytest.raises(RequestError, match=f"^{said}$"):
        Step(learner, 8)


# The codes of a run


class Kept:
    """A run's directory with weights and codes."""

    def __init__(self, folder: Path, refined: bool = False) -> None:
        self.weights = folder / "model.pt"
        self.weights.write_bytes(b"weights")
        self.path = folder / "codes.npz"
        self.config = configured()
        self.task = Hashing(replace(CONFIG, refined=refined), 3)
        self.splits = splits_of("cifar10-0")
        self.reference = self.task.reference(Digits(), self.splits, CPU)
        write_reference(self.task, self.reference, self.splits, self.weights)

    def found(
        self, task: Hashing | None = None, splits: Splits | None = None, **changes: Any
    ) -> tuple[Any, int]:
        """The reference, and how many images were encoded for it."""
        network = Digits()
        config = replace(self.config, **changes)
        source = Source(self.weights, [], self.config)
        splits = splits or self.splits
        return reference_of(task or self.task, network, splits, CPU, source, config), network.seen

    def arrays(self) -> dict[str, Any]:
        with np.load(self.path) as file:
            return dict(file)


def same(one: Reference, other: Reference) -> bool:
    outputs = (one.outputs is None) == (other.outputs is None)
    if one.outputs is not None and other.outputs is not None:
        outputs = torch.equal(one.outputs, other.outputs)
    return (
        np.array_equal(one.codes.packed, other.codes.packed)
        and one.codes.bits == other.codes.bits
        and np.array_equal(one.labels.values, other.labels.values)
        and torch.equal(one.train, other.train)
        and torch.equal(one.train_targets, other.train_targets)
        and outputs
    )


class TestKeptCodes:
    @pytest.mark.parametrize("refined", [False, True])
    def test_are_read_back_without_encoding_an_image(self, refined: bool, tmp_path: Path) -> None:
        kept = Kept(tmp_path, refined)
        found, encoded = kept.found()
        assert encoded == 0
        assert same(found, kept.reference)

    def test_are_as_documented(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        assert kept.splits.database is not None
        assert kept.splits.indices is not None
        arrays = kept.arrays()
        ids = kept.splits.indices["database"].tolist()
        bits = np.unpackbits(arrays["packed"], axis=1, count=int(arrays["bits"]))
        assert bits.tolist() == [[(number >> bit) & 1 for bit in range(BITS)] for number in ids]
        assert arrays["ids"].tolist() == ids
        assert arrays["labels"].tolist() == [number % 3 for number in ids]
        train = np.unpackbits(arrays["train"], axis=1)
        own = kept.splits.indices["train"].tolist()
        assert train.tolist() == [[(number >> bit) & 1 for bit in range(BITS)] for number in own]
        assert str(arrays["model"]) == file_digest(kept.weights)
        assert str(arrays["database_digest"]) == kept.splits.database.digest
        assert str(arrays["train_digest"]) == kept.splits.train.digest

    def test_of_damaged_files_are_computed_again(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        whole, arrays = kept.path.read_bytes(), kept.arrays()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0xFF
        contents: list[bytes | dict[str, Any]] = [
            b"", b"no zip file", whole[: len(whole) // 2], whole[:-1], bytes(flipped),
            *({**arrays, name: None} for name in arrays if name not in ("ids", "labels")),
            {**arrays, "packed": arrays["packed"][1:]},
            {**arrays, "train": arrays["train"][:-1]},
            {**arrays, "packed": arrays["packed"].astype(np.int64)},
            {**arrays, "packed": np.array("text")},
            {**arrays, "bits": np.array([8, 8])},
            {**arrays, "bits": 20},
            {**arrays, "bits": 7},
        ]  # fmt: skip
        for content in contents:
            if isinstance(content, dict):
                np.savez(kept.path, **{name: value for name, value in content.items() if value is not None})
            else:
                kept.path.write_bytes(content)
            found, encoded = kept.found()
            assert encoded > 0, content
            assert same(found, kept.reference)
        kept.path.write_bytes(whole)
        assert kept.found()[1] == 0

    def test_of_a_single_array_a_folder_or_nothing_are_computed_again(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        with kept.path.open("wb") as file:
            np.save(file, np.zeros(3))
        assert kept.found()[1] > 0
        kept.path.unlink()
        assert kept.found()[1] > 0
        kept.path.mkdir()
        assert kept.found()[1] > 0

    def test_of_other_weights_or_images_are_computed_again(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        other = splits_of("cifar10-0", seed=1)
        found, encoded = kept.found(splits=other)
        assert encoded > 0
        assert same(found, kept.task.reference(Digits(), other, CPU))
        assert kept.splits.database is not None
        shuffled = replace(kept.splits, database=kept.splits.database.take(torch.arange(29, -1, -1)))
        assert kept.found(splits=shuffled)[1] > 0
        kept.weights.write_bytes(b"other weights")
        assert kept.found()[1] > 0

    def test_of_images_that_are_normalised_or_read_otherwise_are_computed_again(self, tmp_path: Path) -> None:
        """Neither is in the weights, and of image files that are read one by one not in the digest."""
        kept = Kept(tmp_path)
        dataset = kept.config.dataset
        for changed in (replace(dataset, mean=[0.9]), replace(dataset, std=[0.1])):
            assert kept.found(dataset=changed)[1] > 0
        assert kept.found(dataset=copy.deepcopy(dataset), seed=5, threads=3)[1] == 0

    def test_without_outputs_do_not_do_for_refined_ties(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        refined = Hashing(replace(CONFIG, refined=True), 3)
        found, encoded = kept.found(refined)
        assert encoded > 0
        assert found.outputs is not None
        write_reference(refined, found, kept.splits, kept.weights)
        assert kept.found(refined)[1] == 0
        plain, encoded = kept.found()
        assert encoded == 0
        assert plain.outputs is None

    def test_are_computed_without_a_draw_of_feedback(self, tmp_path: Path) -> None:
        """So that an attack is the same whether a run's codes are there or not."""
        kept = Kept(tmp_path)
        network = nn.Sequential(nn.Flatten(), nn.Linear(8, BITS))
        rules.convert(network, BrsfConfig(name="brsf", redraw=Redraw.forward), 0)
        before = copy.deepcopy(network.state_dict())
        source = Source(kept.weights, [], None)
        reference_of(kept.task, network.eval(), kept.splits, CPU, source, kept.config)
        after = network.state_dict()
        for name, value in before.items():
            same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
            assert same, name
