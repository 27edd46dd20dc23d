"""Adversarial training against the attack written out in plain torch, and against torchattacks."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sstune import datasets, rules, tasks
from sstune.backbones import Backbone, Network
from sstune.composition import compose
from sstune.datasets import Batch, Loader
from sstune.interrupt import StopFlag
from sstune.schema import RunConfig
from sstune.seeding import seed_from
from sstune.training import Learner, Progress, Trainer, build_optimizer
from sstune.training.adversarial import Adversary, adversary_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
EPS = 0.1
BASE = [
    "dataset.test_fraction=0.8",
    "dataset.val_fraction=0.2",
    "batch_size=50",
    f"adversary.eps={EPS}",
]
RULES = [["bp"], ["usf"], ["brsf"], ["brsf", "rule.redraw=forward"], ["dfa"], ["wm"], ["pfa"]]
ATTACKS = ["fgsm", "pgd1", "pgd4"]


@pytest.fixture(scope="module")
def digits() -> datasets.Splits:
    return datasets.load(compose("train", BASE).dataset)


def small_network() -> Network:
    """With batch normalisation and dropout, untrained."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(576, 10)
    )
    return Network(Backbone(module, head="5", stem="0"), [0.3], [0.35])


@pytest.fixture(scope="module")
def halfway(digits: datasets.Splits) -> Network:
    """Trained for an epoch, so that some images are wrong before the attack begins, and more during it."""
    network = small_network()
    trainer_of(compose("train", [*BASE, "epochs=1", "optimizer.lr=0.02"]), network, digits).fit(Progress())
    return network


def trainer_of(config: RunConfig, network: Network, digits: datasets.Splits) -> Trainer:
    rules.convert(network.backbone, config.rule, 0, example=torch.zeros(2, 1, 8, 8))
    optimizer = build_optimizer(config.optimizer, network)
    loader = Loader(digits.train, config.batch_size, CPU, config.seed)
    task = tasks.build(config.task, 10)
    learner = Learner(config, network, task, optimizer, CPU)
    return Trainer(learner, loader, digits, lambda progress: None, StopFlag())


def adversary_on(network: Network, *overrides: str, size: int = 50) -> Adversary:
    """The adversary of ``network``, which is converted to the rule asked for."""
    config = compose("train", [*BASE, *overrides])
    example = torch.zeros(2, 1, 8, 8).to(next(network.parameters()))
    rules.convert(network.backbone, config.rule, 0, example=example)
    task, optimizer = tasks.build(config.task, 10), build_optimizer(config.optimizer, network)
    adversary = adversary_of(Learner(config, network, task, optimizer, CPU), size)
    assert adversary is not None
    return adversary


def written_out(
    network: nn.Module, images: Tensor, labels: Tensor, attack: str, key: tuple[int, int]
) -> Tensor:
    """PGD or FGSM of a plain network in eval mode; each image's start is drawn by its position."""
    steps, step_size, start = 1, EPS, images
    if attack != "fgsm":
        steps, step_size = int(attack[3:]), EPS / 4
        noise = torch.empty(images.shape, dtype=torch.float32)
        seed = seed_from(0, "adversarial", *key)
        for position, row in enumerate(noise):
            generator = torch.Generator().manual_seed(seed_from(seed, "pgd", 0, position))
            row.uniform_(-1, 1, generator=generator)
        start = (images + EPS * noise).clamp(0, 1)
    network.eval()
    adversarial = start
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        F.cross_entropy(network(adversarial), labels).backward()
        assert adversarial.grad is not None
        moved = adversarial.detach() + step_size * adversarial.grad.sign()
        low, high = (images - EPS).clamp(0, 1), (images + EPS).clamp(0, 1)
        adversarial = torch.minimum(torch.maximum(moved, low), high)
    return adversarial


def batch(digits: datasets.Splits, n: int = 50) -> tuple[Tensor, Tensor]:
    assert isinstance(digits.train.images, Tensor)
    return digits.train.images[:n] / 255, digits.train.targets[:n]


def moved(
    adversary: Adversary, images: Tensor, labels: Tensor, key: tuple[int, int], positions: slice
) -> Tensor:
    """Adversarial images; which samples they are of plays no part."""
    return adversary(Batch(images, labels, torch.arange(len(labels)) + 500), key, positions).images


class TestImages:
    @pytest.mark.parametrize("attack", ATTACKS)
    @pytest.mark.parametrize("rule", RULES, ids=" ".join)
    def test_are_those_of_the_attack_on_the_same_weights_without_feedback(
        self, rule: list[str], attack: str, halfway: Network, digits: datasets.Splits
    ) -> None:
        images, labels = batch(digits)
        key = (3, 2)
        network = copy.deepcopy(halfway).double()
        adversary = adversary_on(network, f"rule={rule[0]}", *rule[1:], f"adversary.attack={attack}")
        found = moved(adversary, images.double(), labels, key, slice(0, 50))
        expected = written_out(copy.deepcopy(halfway).double(), images.double(), labels, attack, key)
        # the start is drawn in float32
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)
        assert float((found - images).abs().max()) <= EPS + 1e-7
        early = halfway.eval()(images).argmax(1) != labels
        assert 5 <= int(early.sum()) <= 45
        assert float((found - images).abs().amax((1, 2, 3)).min()) > EPS / 5  # those that err at once, too

    def test_start_anew_at_each_step_and_each_position(
        self, halfway: Network, digits: datasets.Splits
    ) -> None:
        adversary = adversary_on(copy.deepcopy(halfway), "adversary.attack=pgd1")
        adversary.attack.step_size = "0"  # leaves the start
        images, labels = batch(digits)
        images = images[:1].expand(50, -1, -1, -1).contiguous()
        starts = [moved(adversary, images, labels, key, slice(0, 50)) for key in ((0, 0), (0, 1), (1, 0))]
        assert len({tuple(start.flatten().tolist()) for some in starts for start in some}) == 3 * 50

    @settings(max_examples=25, deadline=None)
    @given(n=st.integers(1, 20), data=st.data())
    def test_do_not_depend_on_how_a_batch_is_divided(
        self, halfway: Network, digits: datasets.Splits, n: int, data: st.DataObject
    ) -> None:
        cut = data.draw(st.integers(0, n), label="images of the first process")
        size = data.draw(st.integers(1, n), label="images at once")
        images, labels = (
            values.double() if values.is_floating_point() else values for values in batch(digits, n)
        )
        network = copy.deepcopy(halfway).double()
        at_once = adversary_on(network, "adversary.attack=pgd2", size=n)
        whole = moved(at_once, images, labels, (0, 1), slice(0, n))
        divided = adversary_on(network, "adversary.attack=pgd2", size=size)
        shares = [share for share in (slice(0, cut), slice(cut, n)) if share.start < share.stop]
        found = [moved(divided, images[share], labels[share], (0, 1), share) for share in shares]
        torch.testing.assert_close(torch.cat(found), whole, rtol=0, atol=1e-12)

    def test_are_float32_in_the_ball_also_where_products_are_bf16(
        self, halfway: Network, digits: datasets.Splits
    ) -> None:
        images, labels = batch(digits)
        network, seen = copy.deepcopy(halfway), set()
        network.backbone[5].register_forward_hook(  # type: ignore[index]
            lambda module, inputs, output: seen.add(output.dtype)
        )
        adversary = adversary_on(network, "adversary.attack=pgd3", "precision=bf16")
        found = moved(adversary, images, labels, (0, 0), slice(0, 50))
        assert seen == {torch.bfloat16}
        assert found.dtype == torch.float32
        assert float((found - images).abs().max()) <= EPS + 1e-7
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        exact = written_out(copy.deepcopy(halfway), images, labels, "pgd3", (0, 0))
        assert float(((found - exact).abs() < 1e-6).float().mean()) > 0.8


@pytest.mark.parametrize("rule", RULES, ids=" ".join)
def test_nothing_of_the_network_changes(rule: list[str], halfway: Network, digits: datasets.Splits) -> None:
    network = copy.deepcopy(halfway)
    adversary = adversary_on(network, f"rule={rule[0]}", *rule[1:], "adversary.attack=pgd2")
    network.train()
    network.backbone[1].eval()  # type: ignore[index]
    for parameter in network.backbone[0].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    before = whole_state(network)
    moved(adversary, *batch(digits), (0, 0), slice(0, 50))
    assert whole_state(network) == before


def whole_state(network: nn.Module) -> dict[str, Any]:
    """Tensors and draws of the state dict, modes, what is trained, gradients, and torch's random state."""
    state: dict[str, Any] = {
        name: value.numpy().tobytes() if isinstance(value, Tensor) else value
        for name, value in network.state_dict().items()
    }
    state |= {f"mode of {name}": module.training for name, module in network.named_modules()}
    state |= {
        f"{name} trained, graded": (p.requires_grad, p.grad is None) for name, p in network.named_parameters()
    }
    return {**state, "random": torch.get_rng_state().numpy().tobytes()}


class TestTraining:
    def test_each_step_is_the_plain_one_on_adversarial_images(
        self, halfway: Network, digits: datasets.Splits
    ) -> None:
        epochs = 2
        config = compose("train", [*BASE, "rule=bp", "adversary.attack=pgd2", f"epochs={epochs}"])
        trainer = trainer_of(config, copy.deepcopy(halfway), digits)
        clean = [item for epoch in range(epochs) for item in trainer.loader.epoch(epoch)]
        step, checked = trainer.step, 0

        def check(batch: Batch, total: int) -> tuple[Tensor, Tensor]:
            nonlocal checked
            key = divmod(checked, len(trainer.loader))
            before, theirs = clean[checked].images, clean[checked].targets
            expected = written_out(copy.deepcopy(trainer.network), before, theirs, "pgd2", key)
            assert torch.equal(batch.targets, theirs)
            assert torch.equal(batch.samples, clean[checked].samples)
            # in float32 the sign of a gradient that is zero to rounding is anybody's guess
            assert float(((batch.images - expected).abs() < 1e-6).float().mean()) > 0.99
            assert trainer.network.training
            checked += 1
            return step(batch, total)

        trainer.step = check  # type: ignore[assignment]
        trainer.fit(Progress())
        assert checked == epochs * len(trainer.loader)

    def test_makes_a_network_more_robust_than_plain_training(self, digits: datasets.Splits) -> None:
        images, labels = digits.test.images[:300] / 255, digits.test.targets[:300]
        right, eps = {}, 0.15
        for adversarial in ("null", "pgd5"):
            line = ["epochs=10", "optimizer.lr=0.05", f"adversary.attack={adversarial}"]
            line += [f"adversary.eps={eps}"]
            network = small_network()
            trainer_of(compose("train", [*BASE, *line]), network, digits).fit(Progress())
            attack = torchattacks.PGD(network.eval(), eps=eps, alpha=eps / 4, steps=20)
            torch.manual_seed(0)
            moved = attack(images, labels)
            right[adversarial] = int((network(moved).argmax(1) == labels).sum())
        assert right["pgd5"] > 1.5 * right["null"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
def test_compiled_it_is_the_eager_attack_and_compiles_no_more(digits: datasets.Splits) -> None:
    torch._dynamo.reset()

    def graphs() -> int:
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    images, labels = batch(digits, 37)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    network = Network(Backbone(module, head="3", stem="1"), [0.3], [0.35])
    line = ["rule=brsf", "adversary.attack=pgd3"]
    plain = adversary_on(copy.deepcopy(network), *line, size=37)
    eager = moved(plain, images, labels, (0, 0), slice(0, 37))
    before = graphs()
    adversary = adversary_on(network, *line, "compile=default", size=37)
    found = [moved(adversary, images[:n], labels[:n], (0, 0), slice(0, n)) for n in (37, 37, 20)]
    assert graphs() - before == 2  # with a gradient and, to judge the last step, without
    same = (found[0] - eager).abs() < 1e-6
    assert float(same.float().mean()) > 0.99  # but where a gradient is zero to rounding
    assert torch.equal(found[1], found[0])
    torch.testing.assert_close(found[2], eager[:20], rtol=0, atol=1e-6)


def test_without_one_images_are_as_they_are() -> None:
    config, network = compose("train", BASE), small_network()
    optimizer = build_optimizer(config.optimizer, network)
    learner = Learner(config, network, tasks.build(config.task, 10), optimizer, CPU)
    assert adversary_of(learner, 50) is None
