"""RayS against the known distance of linear classifiers, and the paper's algorithm, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from victims import Labelled, labelled, objective_of, victim_of

from sstune.attacks import (
    ATTACKS,
    AttackedModel,
    AttackResult,
    GradientSource,
    Victim,
    check_zero_eps,
    run_attack,
)
from sstune.backbones import Network
from sstune.datasets import Split
from sstune.schema import Gradient, NoiseConfig, RaysConfig

GREY = 256  # images and weights are multiples of small powers of two: sums are exact, in whatever order


class Linear(nn.Module):
    """A linear classifier whose logits for an image are the same bits in any batch."""

    def __init__(self, d: int, n_classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sign_and_size = torch.randint(-40, 41, (n_classes, d), generator=generator).double()
        tiny = torch.rand(d, generator=generator) < 0.2  # so that some flips gain less than the tolerance
        self.weight = sign_and_size / torch.where(tiny, 2**12, 16)
        centre = self.weight @ torch.full((d,), 0.5, dtype=torch.float64)
        self.bias = torch.rand(n_classes, dtype=torch.float64, generator=generator) / 16 - centre

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


def right_images(network: Linear, n: int, shape: tuple[int, ...], seed: int, contrast: float) -> Labelled:
    """Random images around mid-grey, each labelled as the network sees it."""
    generator = torch.Generator().manual_seed(seed)
    grey = contrast * (torch.rand(n, *shape, generator=generator, dtype=torch.float64) - 0.5) + 0.5
    images = (grey * GREY).round() / GREY
    return labelled(images, network(images).argmax(1), None, range(n))


def attack(
    network: nn.Module,
    batch: Labelled,
    eps: float,
    queries: int,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> AttackResult:
    model = AttackedModel(network)
    model.observe = observe
    return ATTACKS["rays"](RaysConfig("rays", ["0"], queries=queries), 0)(
        "", model, batch, objective_of(batch), eps
    )


def nearest_seen(network: nn.Module, batch: Labelled, queries: int) -> Tensor:
    """Linf distance to the nearest adversarial image that the network was shown of each sample."""
    distances = []

    def observe(images: Tensor, outputs: Tensor) -> None:
        distance = (images - batch.images).abs().flatten(1).amax(1)
        distances.append(torch.where(batch.success(outputs), distance, torch.inf))

    attack(network, batch, 0.0, queries, observe)
    assert len(distances) == queries
    return torch.stack(distances).amin(0)


class TestLinear:
    """The least Linf change that reaches the boundary is known."""

    @pytest.mark.parametrize("shape", [(1, 5, 7), (3, 4, 6)])
    def test_comes_close_to_the_exact_distance_from_above(self, shape: tuple[int, int, int]) -> None:
        network = Linear(math.prod(shape), 2, 0)
        length = (network.weight[0] - network.weight[1]).abs().sum()
        network.bias[0] += 0.15 * length
        batch = right_images(network, 8, shape, 1, contrast=0.5)
        exact = (network(batch.images)[:, 0] - network(batch.images)[:, 1]) / length
        assert float(exact.min()) > 0.05
        assert float(exact.max()) < 0.25  # so no pixel is clipped on the way
        found = nearest_seen(network, batch, 3000)
        assert (found >= exact).all()
        assert (found <= 1.01 * exact).all()

    def test_where_pixels_are_clipped_on_the_way(self) -> None:
        shape = (3, 4, 6)
        network = Linear(math.prod(shape), 2, 2)
        images = right_images(network, 12, shape, 3, contrast=1.0).images
        images[..., ::3] = images[..., ::3].round()  # a third is black or white
        batch = labelled(images, network(images).argmax(1), None, range(12))
        pairs = zip(batch.images, batch.targets, strict=True)
        exact = torch.stack([clipped_distance(network, image, label) for image, label in pairs])
        assert float(exact.max()) < 0.5
        found = nearest_seen(network, batch, 3000)
        assert (found >= exact - 1e-12).all()
        assert (found <= 1.01 * exact + 1e-3).all()

    @settings(deadline=None, max_examples=30)
    @given(n_classes=st.integers(2, 6), seed=st.integers(0, 1000))
    def test_is_never_nearer_than_the_nearest_class(self, n_classes: int, seed: int) -> None:
        network = Linear(30, n_classes, seed)
        batch = right_images(network, 4, (1, 5, 6), seed, contrast=0.5)
        logits, label = network(batch.images), batch.targets
        margin = logits.gather(1, label[:, None]) - logits
        weights = (network.weight[label][:, None] - network.weight[None]).abs().sum(2)
        exact = (margin / weights).scatter(1, label[:, None], torch.inf).amin(1)
        found = nearest_seen(network, batch, 200)
        assert (found >= exact).all()


def clipped_distance(network: Linear, image: Tensor, label: Tensor) -> Tensor:
    """By bisection: each pixel moves the way that helps, as far as the radius and [0,1] allow."""
    logits = network(image[None])[0]
    towards = network.weight[1 - label] - network.weight[label]
    room = torch.where(towards > 0, 1 - image.flatten(), image.flatten())
    low, high = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for _ in range(60):
        radius = (low + high) / 2
        gained = (towards.abs() * room.clamp_max(radius)).sum()
        low, high = (low, radius) if gained >= logits[label] - logits[1 - label] else (radius, high)
    return high


def by_the_paper(
    network: nn.Module, image: Tensor, label: int, eps: float, queries: int
) -> tuple[float, Tensor]:
    """Algorithms 1 and 2 for one sample, lengths in L2: the radius found (Linf), and every image queried."""
    d, nearest, shown = image.numel(), math.inf, []

    class Over(Exception):
        pass

    def is_adversarial(direction: np.ndarray, length: float) -> bool:
        nonlocal nearest
        if len(shown) == queries or nearest <= eps:
            raise Over
        moved = np.clip(image.numpy().ravel() + length * direction / math.sqrt(d), 0, 1)
        shown.append(torch.from_numpy(moved).reshape(image.shape))
        if int(network(shown[-1][None]).argmax()) == label:
            return False
        nearest = min(nearest, length / math.sqrt(d))
        return True

    def boundary(direction: np.ndarray, best: float) -> float:
        start, end = 0.0, min(best, math.sqrt(d))
        if not is_adversarial(direction, end):
            return best
        while end - start > 1e-3:
            middle = (start + end) / 2
            if is_adversarial(direction, middle):
                end = middle
            else:
                start = middle
        return end

    best, direction, level = math.inf, np.ones(d), 0
    try:
        while True:
            size = math.ceil(d / 2**level)
            for begin in range(0, d, size):
                flipped = direction.copy()
                flipped[begin : begin + size] *= -1
                length = boundary(flipped, best)
                if length < best:
                    best, direction = length, flipped
            level += 1
    except Over:
        return nearest, torch.stack(shown)


class TestPaper:
    @settings(deadline=None, max_examples=80)
    @given(
        shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5)),
        n_classes=st.integers(2, 4),
        eps=st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]),
        queries=st.integers(1, 300),
        contrast=st.sampled_from([0.5, 1.0]),
        seed=st.integers(0, 1000),
    )
    def test_the_same_images_are_queried(
        self,
        shape: tuple[int, int, int],
        n_classes: int,
        eps: float,
        queries: int,
        contrast: float,
        seed: int,
    ) -> None:
        network = Linear(math.prod(shape), n_classes, seed)
        batch, queried = right_images(network, 1, shape, seed, contrast), []
        attempt = attack(network, batch, eps, queries, lambda images, outputs: queried.append(images))
        radius, expected = by_the_paper(network, batch.images[0], int(batch.targets[0]), eps, queries)
        torch.testing.assert_close(torch.cat(queried), expected, rtol=0, atol=1e-12)
        if radius <= eps:
            assert int(attempt.steps_to_success) == len(expected)
            assert torch.equal(attempt.images, queried[-1])
        else:
            assert len(expected) == queries
            assert int(attempt.steps_to_success) == -1
            assert torch.equal(attempt.images, batch.images)


class TestQueries:
    shape = (3, 4, 5)

    @pytest.fixture
    def linear(self) -> Linear:
        return Linear(60, 3, 5)

    @pytest.fixture
    def batch(self, linear: Linear) -> Labelled:
        return right_images(linear, 24, self.shape, 6, contrast=0.9)

    def test_effort_counts_the_images_that_the_network_saw(self, linear: Linear, batch: Labelled) -> None:
        queries, seen = 150, []

        def observe(images: Tensor, outputs: Tensor) -> None:
            seen.append(len(images))

        together = attack(linear, batch, 0.02, queries, observe)
        expected = torch.where(together.steps_to_success < 0, queries, together.steps_to_success)
        assert sum(seen) == int(expected.sum())
        for i in range(len(expected)):
            seen.clear()
            attack(linear, batch.take(torch.tensor([i])), 0.02, queries, observe)
            assert sum(seen) == int(expected[i])
        assert len(expected.unique()) > 5
        assert -1 in together.steps_to_success

    @settings(deadline=None, max_examples=25)
    @given(data=st.data(), eps=st.sampled_from([0.0, 0.01, 0.03]))
    def test_any_batches_give_the_same_bits(self, data: st.DataObject, eps: float) -> None:
        linear = Linear(60, 3, 5)
        batch = right_images(linear, 10, self.shape, 6, contrast=0.9)
        together = attack(linear, batch, eps, 100)
        order = data.draw(st.permutations(range(10)))
        cuts = sorted(data.draw(st.sets(st.integers(1, 9))))
        for index in torch.tensor_split(torch.tensor(order), cuts):
            apart = attack(linear, batch.take(index), eps, 100)
            assert torch.equal(apart.images, together.images[index])
            assert torch.equal(apart.steps_to_success, together.steps_to_success[index])

    def test_more_of_them_change_nothing_that_is_found(self, linear: Linear, batch: Labelled) -> None:
        few, many = attack(linear, batch, 0.02, 60), attack(linear, batch, 0.02, 400)
        found = few.steps_to_success >= 0
        assert torch.equal(few.steps_to_success[found], many.steps_to_success[found])
        assert torch.equal(few.images[found], many.images[found])
        assert torch.equal(found, (many.steps_to_success >= 0) & (many.steps_to_success <= 60))
        assert int((many.steps_to_success > 60).sum()) > 3

    def test_what_is_found_is_wrong_and_in_the_ball(self, linear: Linear, batch: Labelled) -> None:
        before = batch.images.clone()
        attempt = attack(linear, batch, 0.03, 300)
        assert torch.equal(batch.images, before)
        assert torch.equal(batch.success(linear(attempt.images)), attempt.steps_to_success >= 0)
        assert float((attempt.images - batch.images).abs().max()) <= 0.03 + 1e-12
        assert float(attempt.images.min()) >= 0
        assert float(attempt.images.max()) <= 1

    def test_zero_eps_breaks_nothing(self, linear: Linear, batch: Labelled) -> None:
        attempt = attack(linear, batch, 0.0, 200)
        assert torch.equal(attempt.images, batch.images)
        assert (attempt.steps_to_success == -1).all()

    def test_a_network_that_never_errs_is_asked_to_the_end(self, batch: Labelled) -> None:
        class Constant(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return F.one_hot(batch.targets[: len(images)], 3).double()

        attempt = attack(Constant(), batch, 1.0, 130)  # more than all blocks of 60 values
        assert torch.equal(attempt.images, batch.images)
        assert (attempt.steps_to_success == -1).all()


class OnlyLabels(nn.Module):
    """Another network's predicted classes, with nothing else in its outputs, and no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        outputs: Tensor = self.network(images)
        return F.one_hot(outputs.argmax(1), outputs.shape[1])


def test_predicted_labels_are_all_it_reads() -> None:
    network = Linear(60, 4, 7)
    batch = right_images(network, 20, (3, 4, 5), 8, contrast=0.9)
    whole, labels = attack(network, batch, 0.02, 200), attack(OnlyLabels(network), batch, 0.02, 200)
    assert torch.equal(whole.images, labels.images)
    assert torch.equal(whole.steps_to_success, labels.steps_to_success)
    assert (whole.steps_to_success > 0).any()


class TestDigits:
    """A network that has learned something, through the engine that judges every success anew."""

    @pytest.fixture
    def victim(self, network: Network, test_split: Split) -> Victim:
        return victim_of(network, test_split)

    def test_breaks_more_than_noise_and_knows_after_how_many_queries(self, victim: Victim) -> None:
        source, eps = GradientSource(Gradient.none, victim.network), 32 / 255
        rays = ATTACKS["rays"](RaysConfig("rays", ["0"], queries=200), 0)
        noise = ATTACKS["noise"](NoiseConfig("noise", ["0"], attempts=20), 0)
        check_zero_eps(victim, rays, source, 128)
        found = run_attack(victim, rays, source, eps, 128)
        assert int(found.robust.sum()) < int(run_attack(victim, noise, source, eps, 128).robust.sum())
        assert (found.steps_to_success[found.success & victim.clean] > 0).all()
        assert torch.equal(run_attack(victim, rays, source, eps, 7).steps_to_success, found.steps_to_success)

    def test_draws_nothing(self, victim: Victim) -> None:
        batch = labelled(victim.split.images[:8] / 255, victim.split.targets[:8], None, range(8))
        before = torch.get_rng_state()
        first, second = attack(victim.network, batch, 0.1, 40), attack(victim.network, batch, 0.1, 40)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first.images, second.images)
