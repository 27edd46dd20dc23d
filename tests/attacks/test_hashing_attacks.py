"""Attacks on hashing: whole paths against loops written by hand, and what is made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import hash_oracles as oracle
import pytest
import torch
from torch import Tensor, nn
from victims import CPU, OWN, make

from sstune.attacks import (
    Attack,
    AttackedModel,
    AttackResult,
    GradientSource,
    Outcome,
    Victim,
    check_zero_eps,
    run_attack,
)
from sstune.datasets import Batch, Split
from sstune.retrieval import Codes, Labels
from sstune.rules import convert
from sstune.schema import AttackLoss, Gradient, HashingConfig, RuleConfig
from sstune.tasks import Objective
from sstune.tasks.hashing import Hashing
from sstune.tasks.hashing.objectives import Displacement
from sstune.tasks.hashing.reference import Reference

BITS, QUERIES, TRAIN, DATABASE, CLASSES = 8, 9, 12, 30, 3
SIDE, EPS, STEPS = 4, 0.06, 20
TASK = Hashing(HashingConfig("hashing", bits=BITS), CLASSES)
# The attacks with the settings of their options; so many steps that all values of a are met.
SETTINGS: dict[str, dict[str, Any]] = {
    "hag": {"loss": AttackLoss.hag, "lr": 0.05},
    "hag_sign": {"loss": AttackLoss.hag, "step_size": "eps/8", "random_start": False},
    "sdha": {"loss": AttackLoss.sdha},
    "mainstay": {"loss": AttackLoss.mainstay, "step_size": "1/255"},
    "pgd": {},
}


def attack_of(name: str, **fields: Any) -> Attack:
    return make(name, **{"steps": STEPS, **SETTINGS[name], **fields})


class Doubled(nn.Module):
    """Computes in float64, so that neither batch size nor order of summation matters."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.double()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.inner(images.double())
        return outputs


def deep(seed: int, layers: int = 5, rule: str | None = None) -> nn.Module:
    """Random weights; outputs of about 1."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = [nn.Flatten()]
    widths = [SIDE * SIDE, *[32] * layers, BITS]
    for inputs, width in itertools.pairwise(widths):
        linear = nn.Linear(inputs, width)
        nn.init.kaiming_normal_(linear.weight)
        parts += [linear, nn.ReLU()]
    network = nn.Sequential(*parts[:-1])
    if rule is not None:
        convert(network, RuleConfig(rule), 0)
    return Doubled(network).eval()


def images_of(n: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 1, SIDE, SIDE), generator=draw, dtype=torch.uint8)


QUERY = Split(images_of(QUERIES, 1), torch.arange(QUERIES) % CLASSES)
TRAINING = Split(images_of(TRAIN, 2), torch.arange(TRAIN) % CLASSES)
SEARCHED = Split(images_of(DATABASE, 3), torch.arange(DATABASE) % CLASSES)


@torch.no_grad()
def outputs_of(network: nn.Module, images: Tensor) -> Tensor:
    found: Tensor = network(images)
    return found


def codes(network: nn.Module, split: Split) -> list[list[int]]:
    return [oracle.code(row) for row in outputs_of(network, split.images / 255).tolist()]


def reference_of(network: nn.Module) -> Reference:
    searched, train = (torch.tensor(codes(network, split)) for split in (SEARCHED, TRAINING))
    labels = Labels.of(SEARCHED.targets)
    return Reference(Codes.of(searched), labels, train.to(torch.int8), TRAINING.targets)


def victim_of(network: nn.Module) -> Victim:
    return Victim.of(network, TASK, QUERY, torch.arange(QUERIES), CPU, reference_of(network))


def run(
    network: nn.Module,
    attack: Attack,
    eps: float = EPS,
    gradient: Gradient = Gradient.exact,
    batch_size: int = 64,
) -> Outcome:
    victim = victim_of(network)
    outcome = victim.begin(QUERIES)
    return run_attack(victim, attack, GradientSource(gradient, network), eps, batch_size, outcome)


def batch_in(dtype: torch.dtype = torch.float64) -> Batch:
    return Batch(QUERY.images.to(dtype) / 255, QUERY.targets, torch.arange(QUERIES))


def objective_of(attack: Attack, network: nn.Module, batch: Batch) -> Objective:
    goal = replace(attack.goal(), reference=reference_of(network))
    return TASK.objective(batch, goal, lambda: outputs_of(network, batch.images))


def attempt(attack: Attack, network: nn.Module, batch: Batch, eps: float = EPS) -> AttackResult:
    return attack(attack.stages[0], AttackedModel(network), batch, objective_of(attack, network, batch), eps)


def precision(network: nn.Module, images: Tensor) -> list[float]:
    """AP of each query, by brute force."""
    searched, targets = codes(network, SEARCHED), SEARCHED.targets.tolist()
    rows = zip(outputs_of(network, images).tolist(), QUERY.targets.tolist(), strict=True)
    return [oracle.ap_of(row, target, searched, targets) for row, target in rows]


# The loops by hand


class Path:
    """One query's loss, and its best iterate."""

    def __init__(self, name: str, network: nn.Module, query: int) -> None:
        self.name = {"hag_sign": "hag", "pgd": "logits"}.get(name, name)
        self.network = network
        self.image = QUERY.images[query : query + 1].double() / 255
        self.clean = network(self.image)[0].tolist()
        train, target = codes(network, TRAINING), int(QUERY.targets[query])
        relevant = [int(other) == target for other in TRAINING.targets]
        self.relevant = [row for row, is_relevant in zip(train, relevant, strict=True) if is_relevant]
        self.reference = oracle.code(self.clean)
        if self.name == "mainstay":
            self.reference = oracle.mainstay_code(relevant, train)
        self.best: tuple[tuple[float, float], Tensor] | None = None

    def loss(self, outputs: Sequence[complex], a: float) -> complex:
        """To be decreased, without the change of the image."""
        if self.name == "logits":
            return oracle.logits(outputs, self.reference)
        if self.name == "hag":
            return oracle.hag(outputs, self.clean, a)
        if self.name == "sdha":
            return -25 / BITS * oracle.sdha(outputs, self.relevant, a)
        return oracle.mainstay(outputs, self.reference, a)

    def gradient(self, image: Tensor, a: float) -> Tensor:
        leaf = image.clone().requires_grad_()
        outputs = self.network(leaf)
        slope = oracle.gradient(lambda f: self.loss(f, a), outputs[0].tolist())
        (found,) = torch.autograd.grad(outputs, leaf, torch.tensor([slope], dtype=torch.float64))
        if self.name == "sdha":
            found = found + 2 * (image - self.image) / image.numel()
        return found

    def see(self, image: Tensor) -> None:
        outputs = self.network(image)[0].tolist()
        inner = sum((h * c for h, c in zip(oracle.squashed(outputs), self.reference, strict=True)), 0j).real
        key = (oracle.hamming(oracle.code(outputs), self.reference), -inner)
        if self.best is None or key > self.best[0]:
            self.best = key, image.clone()

    def inside(self, image: Tensor) -> Tensor:
        low, high = (self.image - EPS).clamp(min=0), (self.image + EPS).clamp(max=1)
        return torch.minimum(torch.maximum(image, low), high)


def walked(name: str, path: Path, start: Tensor) -> tuple[Tensor, Tensor]:
    """The best and the last iterate of a query that starts at ``start``."""
    image = nn.Parameter(start.clone())
    optimizers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "hag": lambda: torch.optim.SGD([image], lr=SETTINGS["hag"]["lr"], momentum=0.9),
        "sdha": lambda: torch.optim.Adam([image], lr=0.01),
    }
    optimizer = optimizers[name]() if name in optimizers else None
    size = {"hag_sign": EPS / 8, "mainstay": 1 / 255, "pgd": EPS / 4}.get(name, 0.0)
    for step in range(STEPS):
        path.see(image.data)
        gradient = path.gradient(image.data, oracle.continuation(step, STEPS))
        if optimizer is None:
            image.data -= size * gradient.sign()
        else:
            image.grad = gradient
            optimizer.step()
        image.data = path.inside(image.data)
    path.see(image.data)
    assert path.best is not None
    return path.best[1], image.data


@pytest.mark.parametrize("name", SETTINGS)
def test_paths_equal_those_of_a_loop_by_hand(name: str) -> None:
    """Of torch's optimisers or of signs, with projection; each query keeps its best iterate."""
    network, batch, attack = deep(0), batch_in(), attack_of(name)
    found = attempt(attack, network, batch).images
    has_start: Any = getattr(attack, "start", lambda batch, eps, restart: batch.images)
    starts = has_start(batch, EPS, 0)
    best, last = zip(
        *(walked(name, Path(name, network, query), starts[query : query + 1]) for query in range(QUERIES)),
        strict=True,
    )
    torch.testing.assert_close(found, torch.cat(best), rtol=0, atol=1e-9)
    assert (torch.cat(best) != torch.cat(last)).any()  # for some queries they differ
    moved = (found - batch.images).abs().flatten(1).amax(1) > EPS / 4
    assert int(moved.sum()) >= QUERIES - 1  # of SDHA one start is a best iterate
    assert torch.equal(starts, batch.images) == (name not in ("mainstay", "pgd"))


@pytest.mark.parametrize("name", ["hag", "sdha"])
def test_paths_in_float32_are_these_paths(name: str) -> None:
    network, attack = deep(0), attack_of(name)
    exact = attempt(attack, network, batch_in()).images
    network.float()
    single = attempt(attack, network.inner, batch_in(torch.float32)).images
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-3)
    moved = (exact - batch_in().images).abs().mean()
    assert float((single.double() - exact).abs().mean()) < 1e-3 * float(moved)


@pytest.mark.parametrize("name", SETTINGS)
class TestEveryAttack:
    def test_does_not_depend_on_the_batch_size(self, name: str) -> None:
        network, batch = deep(0), batch_in(torch.float32)
        attack = attack_of(name)
        whole = attempt(attack, network, batch)
        outcomes = []
        for size in (1, 7, 128):
            parts = [attempt(attack, network, part) for part in batch.chunks(size)]
            images = torch.cat([part.images for part in parts])
            assert float((images - whole.images).abs().max()) <= 1e-6
            outcomes.append(run(network, attack, batch_size=size))
        for outcome in outcomes:
            assert torch.equal(outcome.achieved, outcomes[0].achieved)
            assert torch.equal(outcome.images, outcomes[0].images)

    def test_is_judged_by_the_average_precision_of_its_images(self, name: str) -> None:
        network = deep(0)
        outcome = run(network, attack_of(name, eight_bit=True))
        images = outcome.images.float() / 255
        assert torch.equal(outcome.predictions, outputs_of(network, images))
        expected = torch.tensor(precision(network, images))
        torch.testing.assert_close(1 - outcome.achieved, expected, rtol=0, atol=1e-6)
        score = victim_of(network).score_of(outcome)
        assert score.value == pytest.approx(float(expected.mean()), abs=1e-6)
        clean = torch.tensor(precision(network, QUERY.images / 255))
        assert float((expected - clean).abs().mean()) > 0.005

    def test_leaves_images_in_range_and_within_eps(self, name: str) -> None:
        batch = batch_in(torch.float32)
        for eps in (1 / 255, 0.3, 1.0):
            images = attempt(attack_of(name), deep(0), batch, eps).images
            assert float(images.min()) >= 0
            assert float(images.max()) <= 1
            assert float((images - batch.images).abs().max()) <= eps + 1e-7

    def test_with_eps_of_zero_changes_nothing(self, name: str) -> None:
        network, batch = deep(0), batch_in(torch.float32)
        assert torch.equal(attempt(attack_of(name), network, batch, 0.0).images, batch.images)
        victim, source = victim_of(network), GradientSource(Gradient.exact, network)
        check_zero_eps(victim, attack_of(name), source, 64)
        outcome = run(network, attack_of(name), eps=0.0)
        torch.testing.assert_close(outcome.predictions, victim.predictions, rtol=0, atol=1e-6)

    def test_goes_on_to_the_last_step(self, name: str) -> None:
        """No code ends an attack, so there is no step of success either."""
        network, batch = deep(0), batch_in(torch.float32)
        found = attempt(attack_of(name), network, batch)
        assert (found.steps_to_success == -1).all()
        if name in ("hag", "sdha"):
            return
        for early_exit in (True, False):
            other = attempt(attack_of(name, early_exit=early_exit), network, batch)
            assert torch.equal(other.images, found.images)

    def test_counts_gradients_that_are_zero(self, name: str) -> None:
        network = deep(0)
        assert run(network, attack_of(name)).zero_gradients.tolist() == [0.0] * QUERIES
        dead: Any = deep(0)
        dead.inner[1].bias.data -= 1e3  # the first layer's units are off for every image
        outcome = run(dead, attack_of(name))
        assert outcome.zero_gradients.tolist() == [1.0] * QUERIES
        assert torch.equal(outcome.achieved, run(dead, attack_of(name), eps=0.0).achieved)

    @pytest.mark.parametrize("rule", ["bp", "sham"])
    def test_rule_and_exact_gradient_agree_without_other_feedback(self, name: str, rule: str) -> None:
        network = deep(0, rule=rule)
        own, exact = (run(network, attack_of(name), gradient=gradient) for gradient in OWN)
        torch.testing.assert_close(own.predictions, exact.predictions, rtol=0, atol=1e-6)
        assert torch.equal(own.achieved, exact.achieved)

    def test_they_differ_under_sign_symmetry(self, name: str) -> None:
        network = deep(0, layers=8, rule="usf")
        own, exact = (run(network, attack_of(name), gradient=gradient) for gradient in OWN)
        assert float((own.predictions - exact.predictions).abs().max()) > 0.1
        assert not torch.equal(own.images, exact.images)

    def test_may_be_rounded_to_8_bits(self, name: str) -> None:
        """What is kept and judged are whole grey levels inside the ball."""
        network, eps = deep(0), 7.6 / 255
        outcome = run(network, attack_of(name, eight_bit=True), eps=eps)
        assert int((outcome.images.int() - QUERY.images.int()).abs().max()) <= 7
        assert torch.equal(outcome.predictions, outputs_of(network, outcome.images.float() / 255))
        plain = run(network, attack_of(name), eps=eps)
        assert not torch.equal(plain.predictions, outcome.predictions)


def test_a_share_of_zero_gradients_is_reported_query_by_query() -> None:
    """Only bright images reach the units behind a high threshold."""
    network: Any = deep(0)
    network.inner[1].weight.data.fill_(1.0)
    mean = (QUERY.images / 255).flatten(1).sum(1)
    threshold = float(mean.median())
    network.inner[1].bias.data.fill_(-threshold)
    found = attempt(attack_of("hag", steps=1), network, batch_in()).zero_gradients
    assert found is not None
    assert found.tolist() == [1.0 if value <= threshold else 0.0 for value in mean.tolist()]


@pytest.mark.parametrize("steps", [5, 40])
def test_more_restarts_and_steps_never_raise_the_precision(steps: int) -> None:
    network = deep(0)
    one = run(network, attack_of("mainstay", steps=steps))
    three = run(network, attack_of("mainstay", steps=steps, restarts=3))
    assert (three.achieved >= one.achieved).all()
    assert (three.achieved > one.achieved).any()


class Watched(Attack):
    """Another attack, whose objectives and images are kept."""

    def __init__(self, inner: Attack) -> None:
        super().__init__(inner.config, inner.seed)
        self.inner, self.stages = inner, inner.stages
        self.objectives: list[Displacement] = []
        self.found: list[Tensor] = []

    def __call__(
        self, stage: str, model: AttackedModel, batch: Batch, objective: Objective, eps: float
    ) -> AttackResult:
        assert isinstance(objective, Displacement)
        self.objectives.append(objective)
        result = self.inner(stage, model, batch, objective, eps)
        self.found.append(result.images)
        return result


class TestTransfer:
    def transferred(self, name: str, reference: bool = True) -> tuple[nn.Module, nn.Module, Watched, Outcome]:
        network, other, attack = deep(0), deep(7), Watched(attack_of(name))
        its_own = reference_of(other) if reference else None
        source = GradientSource(Gradient.surrogate, other, "other", reference=its_own)
        return network, other, attack, run_attack(victim_of(network), attack, source, EPS, 128)

    @pytest.mark.parametrize("name", SETTINGS)
    def test_the_objective_is_of_the_surrogates_codes(self, name: str) -> None:
        _, other, attack, _ = self.transferred(name)
        (objective,), batch = attack.objectives, batch_in(torch.float32)
        outputs = outputs_of(other, batch.images)
        torch.testing.assert_close(objective.query.own, torch.tanh(outputs))
        expected = [oracle.code(row) for row in outputs.tolist()]
        if name == "mainstay":
            train = codes(other, TRAINING)
            relevant = [(TRAINING.targets == target).tolist() for target in QUERY.targets]
            expected = [oracle.mainstay_code(row, train) for row in relevant]
        if name == "sdha":
            assert objective.query.codes is not None
            assert {tuple(row) for row in codes(other, TRAINING)} <= {
                tuple(row) for row in objective.query.codes.int().tolist()
            }
        assert objective.query.reference.tolist() == expected
        alone = attempt(attack.inner, other, batch).images
        assert torch.equal(attack.found[0], alone)

    @pytest.mark.parametrize("name", SETTINGS)
    def test_success_is_that_of_the_victims_ranking(self, name: str) -> None:
        network, other, attack, outcome = self.transferred(name)
        expected = torch.tensor(precision(network, attack.found[0]))
        torch.testing.assert_close(1 - outcome.achieved, expected, rtol=0, atol=1e-6)
        assert torch.equal(outcome.predictions, outputs_of(network, attack.found[0]))
        theirs = torch.tensor(precision(other, attack.found[0]))
        assert float((theirs - expected).abs().max()) > 0.01
        assert (outcome.steps_to_success == -1).all()
