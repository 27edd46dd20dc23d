"""Losses of attacks on a query, their gradients, reference codes, merit and judgement, by plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import hash_oracles as oracle
import numpy as np
import pytest
import torch
from torch import Tensor

from sstune.datasets import Batch
from sstune.retrieval import Codes, Labels
from sstune.schema import HashingConfig, RequestError, Target
from sstune.tasks import Goal
from sstune.tasks.hashing import Hashing
from sstune.tasks.hashing.objectives import Displacement, mainstay_code, relaxation
from sstune.tasks.hashing.reference import Reference

BITS, N, M = 6, 9, 14
LOSSES = ["logits", "hag", "sdha", "mainstay"]
STEPS = [0.0, 0.45, 0.5, 0.65, 0.73, 0.85, 0.99]  # of a whole attack
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


@dataclass
class Scene:
    """N queries, M training and D database images, with classes or labels.

    Query 0 has the code of all items of class 0; query 1 has no relevant item; codes repeat.
    """

    several: bool
    top: int | None = None

    def __post_init__(self) -> None:
        stream = np.random.default_rng(3)
        self.clean = stream.normal(0, 1.2, (N, BITS))
        self.outputs = self.clean + stream.normal(0, 1, (N, BITS))
        kinds = np.where(stream.random((5, BITS)) < 0.5, -1, 1)
        self.train = kinds[stream.integers(0, 5, M)]
        self.database = np.where(stream.random((40, BITS)) < 0.5, -1, 1)
        if self.several:
            self.targets = (stream.random((N, 6)) < 0.4).astype(np.float32)
            self.train_targets = (stream.random((M, 6)) < 0.3).astype(np.float32)
            self.database_targets = (stream.random((40, 6)) < 0.3).astype(np.float32)
            self.targets[0], self.targets[1] = 0, 0
            self.train_targets[:, :2] = 0
            self.train_targets[:4, 0] = 1
            self.targets[0, 0], self.targets[1, 1] = 1, 1
        else:
            self.targets, self.train_targets = stream.integers(1, 4, N), stream.integers(1, 4, M)
            self.database_targets = stream.integers(0, 4, 40)
            self.targets[0], self.targets[1] = 0, 9
            self.train_targets[:4] = 0
        self.train[:4] = kinds[0]
        self.outputs[0] = kinds[0] * np.linspace(0.3, 2, BITS)
        self.images = stream.random((N, 1, 2, 2))
        self.moved = self.images + stream.uniform(-0.1, 0.1, self.images.shape)

    def objective(self, name: str | None, **goal: Any) -> Displacement:
        reference = Reference(
            Codes.of(torch.tensor(self.database)),
            Labels.of(torch.tensor(self.database_targets)),
            torch.tensor(self.train, dtype=torch.int8),
            torch.tensor(self.train_targets),
        )
        batch = Batch(torch.tensor(self.images), torch.tensor(self.targets), torch.arange(N))
        task = Hashing(HashingConfig("hashing", bits=BITS, top_k=self.top), 10)
        made = task.objective(
            batch, Goal(name, reference=reference, **goal), lambda: torch.tensor(self.clean)
        )
        assert isinstance(made, Displacement)
        return made

    def relevant(self, query: int) -> list[bool]:
        target = self.targets[query].tolist()
        return [oracle.related(target, other) for other in self.train_targets.tolist()]

    def loss(
        self, name: str, query: int, outputs: Sequence[complex], image: Sequence[complex], a: float
    ) -> complex:
        """To be increased."""
        clean = self.clean[query].tolist()
        if name == "logits":
            return -oracle.logits(outputs, oracle.code(clean))
        if name == "hag":
            return -oracle.hag(outputs, clean, a)
        train = self.train.tolist()
        if name == "mainstay":
            return -oracle.mainstay(outputs, oracle.mainstay_code(self.relevant(query), train), a)
        codes = [code for code, is_relevant in zip(train, self.relevant(query), strict=True) if is_relevant]
        distance = oracle.sdha(outputs, codes or [oracle.code(clean)], a)
        original = self.images[query].ravel().tolist()
        change = sum((x - y) ** 2 for x, y in zip(image, original, strict=True)) / len(original)
        return 25 / BITS * distance - change


def evaluated(scene: Scene, name: str, progress: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (N,), and its gradients with respect to outputs and images."""
    outputs = torch.tensor(scene.outputs, requires_grad=True)
    images = torch.tensor(scene.moved, requires_grad=True)
    loss = scene.objective(name).loss(outputs, images, progress)
    by_outputs, by_images = torch.autograd.grad(
        loss.sum(), (outputs, images), allow_unused=True, materialize_grads=True
    )
    return loss.detach(), by_outputs, by_images


@pytest.mark.parametrize("progress", STEPS)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", LOSSES)
class TestLosses:
    def test_equal_the_published_formulas(self, name: str, several: bool, progress: float) -> None:
        scene, a = Scene(several), oracle.TABLE[int(10 * progress)]
        loss, by_outputs, by_images = evaluated(scene, name, progress)
        for query in range(N):
            at, image = scene.outputs[query].tolist(), scene.moved[query].ravel().tolist()
            value = scene.loss(name, query, at, image, a)
            torch.testing.assert_close(float(loss[query]), value.real, **EXACT)
            slope = oracle.gradient(lambda f: scene.loss(name, query, f, image, a), at)  # noqa: B023
            torch.testing.assert_close(by_outputs[query], torch.tensor(slope, dtype=torch.float64), **EXACT)
            slope = oracle.gradient(lambda x: scene.loss(name, query, at, x, a), image)  # noqa: B023
            found = by_images[query].flatten()
            torch.testing.assert_close(found, torch.tensor(slope, dtype=torch.float64), **EXACT)
            assert (name == "sdha") == bool(found.any())


def test_finite_differences_agree_with_the_oracles_own_gradient() -> None:
    """What the complex step says is a derivative of the formula."""
    scene = Scene(False)
    for name in LOSSES:
        for query in range(N):
            image = scene.moved[query].ravel().tolist()
            loss = partial(scene.loss, name, query, image=image, a=0.7)
            at, step = scene.outputs[query].tolist(), 1e-6
            slope = oracle.gradient(loss, at)
            for bit in range(BITS):
                up, down = list(at), list(at)
                up[bit], down[bit] = up[bit] + step, down[bit] - step
                quotient = (loss(up).real - loss(down).real) / (2 * step)
                assert quotient == pytest.approx(slope[bit], rel=1e-5, abs=1e-5)


class TestSdha:
    def test_a_query_at_its_class_code_has_the_weight_1e4(self) -> None:
        """All relevant items of query 0 have its code: the distance counts 10,000-fold."""
        scene = Scene(False)
        weighed, _, _ = evaluated(scene, "sdha", 0.95)
        h = np.tanh(scene.outputs[0]) * scene.train[0]
        gate = 1 / (1 + np.exp(-5 * h))
        plain = (0.5 * (1 - h) * gate + 1 - gate).sum()
        change = ((scene.moved[0] - scene.images[0]) ** 2).mean()
        assert float(weighed[0] + change) * BITS / 25 / plain == pytest.approx(1e4, rel=1e-9)

    def test_there_the_change_of_the_image_is_not_drowned(self) -> None:
        scene = Scene(False)
        objective = scene.objective("sdha")
        outputs, images = torch.tensor(scene.outputs), torch.tensor(scene.images)
        further = images + 1e-3
        lost = objective.loss(outputs, images, 0.95) - objective.loss(outputs, further, 0.95)
        assert float(objective.loss(outputs, images, 0.95)[0]) > 1e3
        torch.testing.assert_close(lost, torch.full((N,), 1e-6, dtype=torch.float64), rtol=0, atol=1e-10)

    def test_float32_outputs_are_summed_in_float64(self) -> None:
        scene = Scene(False)
        outputs, images = torch.tensor(scene.outputs).float(), torch.tensor(scene.moved)
        for name in LOSSES:
            found = scene.objective(name).loss(outputs, images, 0.95)
            expected = scene.objective(name).loss(outputs.double(), images, 0.95)
            assert found.dtype == torch.float64
            assert torch.equal(found, expected), name

    @pytest.mark.parametrize("several", [False, True])
    def test_equal_codes_are_counted_and_not_repeated(self, several: bool) -> None:
        query = Scene(several).objective("sdha").query
        assert query.codes is not None
        assert query.counts is not None
        different = {tuple(row) for row in Scene(several).train.tolist()}
        assert len(query.codes) == len(different) + N  # and the own codes, for queries without relevant items
        relevant = [sum(Scene(several).relevant(number)) for number in range(N)]
        assert relevant[0] > 1
        assert relevant[1] == 0
        assert query.counts.sum(1).tolist() == [max(1, n) for n in relevant]

    def test_without_relevant_items_a_query_leaves_its_own_code(self) -> None:
        scene = Scene(False)
        scene.train_targets[:] = 7  # relevant to none
        loss, by_outputs, _ = evaluated(scene, "sdha", 0.55)
        for number in range(N):
            at, image = scene.outputs[number].tolist(), scene.moved[number].ravel().tolist()
            expected = 25 / BITS * oracle.sdha(at, [oracle.code(scene.clean[number].tolist())], 0.2).real
            change = ((scene.moved[number] - scene.images[number]) ** 2).mean()
            assert float(loss[number]) == pytest.approx(expected - change, rel=1e-9)
            slope = oracle.gradient(lambda f: scene.loss("sdha", number, f, image, 0.2), at)  # noqa: B023
            torch.testing.assert_close(by_outputs[number], torch.tensor(slope, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 20, 50, 100, 1500, 2000])
def test_continuation_rises_by_tenths(steps: int) -> None:
    """Steps are whole numbers; the share of them that is done is a float."""
    for step in range(steps):
        assert relaxation(step / steps) == oracle.continuation(step, steps), step


class TestReferenceCodes:
    @pytest.mark.parametrize("several", [False, True])
    def test_of_mainstay_by_brute_force(self, several: bool) -> None:
        scene = Scene(several)
        found = scene.objective("mainstay").query.reference
        expected = [oracle.mainstay_code(scene.relevant(query), scene.train.tolist()) for query in range(N)]
        assert found.tolist() == expected
        assert not any(scene.relevant(1))  # the mean of all other codes, with the opposite sign

    @pytest.mark.parametrize("several", [False, True])
    @pytest.mark.parametrize("name", [None, "logits", "hag", "sdha"])
    def test_of_the_others_is_the_own_code(self, name: str | None, several: bool) -> None:
        scene = Scene(several)
        scene.clean[2, :3] = 0.0, -0.0, -1e-300  # sign(0) = +1
        found = scene.objective(name).query.reference
        assert found.tolist() == [oracle.code(row) for row in scene.clean.tolist()]
        assert found[2, :3].tolist() == [1, 1, -1]

    def test_ties_of_the_means_are_exact(self) -> None:
        """In every draw some means are equal fractions of different numbers, such as 1/3 and 2/6."""
        stream = np.random.default_rng(0)
        ties = 0
        for _ in range(200):
            m = int(stream.integers(1, 13))
            codes = np.where(stream.random((m, 4)) < 0.5, -1, 1)
            relevant = stream.random((3, m)) < stream.random()
            similar = torch.tensor(relevant, dtype=torch.float64)
            found = mainstay_code(similar, torch.tensor(codes, dtype=torch.float64))
            expected = [oracle.mainstay_code(row, codes.tolist()) for row in relevant.tolist()]
            assert found.tolist() == expected
            ties += sum(0 < sum(row) < m for row in relevant.tolist())
        assert ties > 100

    def test_all_items_relevant_give_their_majority(self) -> None:
        codes = torch.tensor([[1, 1, -1], [1, -1, -1], [-1, -1, 1]], dtype=torch.float64)
        assert mainstay_code(torch.ones(1, 3, dtype=torch.float64), codes).tolist() == [[1, -1, -1]]


class TestMerit:
    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_counts_bits_first_and_breaks_ties_by_the_inner_product(
        self, name: str, dtype: torch.dtype
    ) -> None:
        scene = Scene(False)
        objective = scene.objective(name)
        reference = objective.query.reference.tolist()
        stream = np.random.default_rng(5)
        iterates = torch.tensor(stream.normal(0, 1, (40, N, BITS)) * stream.choice([0.1, 1, 3], (40, 1, 1)))
        iterates = iterates.to(dtype)
        merits = torch.stack([objective.merit(outputs) for outputs in iterates])
        for query in range(N):
            keys = []
            for outputs in iterates[:, query].double().tolist():
                inner = sum(math.tanh(f) * c for f, c in zip(outputs, reference[query], strict=True))
                keys.append((oracle.hamming(oracle.code(outputs), reference[query]), -inner))
            order = sorted(range(40), key=keys.__getitem__)
            assert merits[:, query].argsort(stable=True).tolist() == order

    def test_one_bit_more_outweighs_any_inner_product(self) -> None:
        """Two bits at the edge of change against one far beyond, all others deep in the reference code."""
        scene = Scene(False)
        objective = scene.objective("logits")
        c = objective.query.reference
        two, one = 50 * c, -50 * c
        two[:, :2] = -1e-9 * c[:, :2]
        one[:, 1:] = 1e-9 * c[:, 1:]
        found = objective.merit(two), objective.merit(one)
        assert (found[0] > found[1]).all()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("top", [None, 1, 5, 17, 1000])
def test_achieved_is_what_average_precision_lacks_of_one(several: bool, top: int | None) -> None:
    scene = Scene(several, top)
    for name in LOSSES:
        found = scene.objective(name).achieved(torch.tensor(scene.outputs))
        assert found.dtype == torch.float32
        for query in range(N):
            target = scene.targets[query].tolist()
            ap = oracle.ap_of(
                scene.outputs[query].tolist(),
                target,
                scene.database.tolist(),
                scene.database_targets.tolist(),
                top,
            )
            assert float(found[query]) == pytest.approx(1 - ap, abs=1e-7)
        if not several:
            assert float(found[1]) == 1.0  # its class is nowhere in the database


def test_no_code_is_a_success_that_ends_the_attack() -> None:
    scene = Scene(False)
    outputs = -100 * torch.tensor(scene.clean)
    assert not scene.objective("logits").is_adversarial(outputs).any()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_taken_queries_are_the_same_queries(name: str, several: bool) -> None:
    scene = Scene(several, top=7)
    objective, index = scene.objective(name), torch.tensor([5, 1, 0, 8])
    outputs, images = torch.tensor(scene.outputs), torch.tensor(scene.moved)
    some = objective.take(index)
    for one, all_ in (
        (some.loss(outputs[index], images[index], 0.65), objective.loss(outputs, images, 0.65)),
        (some.merit(outputs[index]), objective.merit(outputs)),
        (some.achieved(outputs[index]), objective.achieved(outputs)),
    ):
        assert len(one) == 4
        torch.testing.assert_close(one, all_[index], rtol=1e-14, atol=0)
    again = some.take(torch.tensor([2]))
    torch.testing.assert_close(
        again.loss(outputs[:1], images[:1], 0.65), objective.loss(outputs, images, 0.65)[:1]
    )


def test_targets_are_refused() -> None:
    with pytest.raises(RequestError, match=r"attack\.targeted: task=hashing has untargeted attacks only"):
        Scene(False).objective(None, target=Target.random)
