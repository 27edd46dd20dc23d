"""The recipe of the fine-tuning paper's authors: every setting that could be read, and a step of it."""

from __future__ import annotations

import pytest
import torch

from sstune import backbones, datasets, training
from sstune.commands.train import build
from sstune.composition import compose
from sstune.datasets import Split, Splits, retrieval_splits
from sstune.schema import AdamConfig, HashingConfig, HashLoss, PretrainedConfig, Queries, RunConfig, Scale
from sstune.training import ALONE

RECIPE = ["experiment=hashing_authors"]
# The network of the recipe without a download.
UNTRAINED = ["backbone.pretrained=false", "backbone.input_size=224", "backbone.variant=imagenet"]
CPU = torch.device("cpu")


def recipe(*overrides: str) -> RunConfig:
    return compose("finetune", [*RECIPE, *overrides])


def images(config: RunConfig) -> Splits:
    """Noise of 32x32 pixels in ten classes, divided as the recipe divides CIFAR-10, but small."""
    draw = torch.Generator().manual_seed(0)
    parts = [
        Split(
            torch.randint(256, (n, 3, 32, 32), generator=draw, dtype=torch.uint8),
            torch.arange(n) % 10,
        )
        for n in (60, 10, 20)
    ]
    split = config.split
    split.n_query, split.n_train, split.n_val = 1, 1, 1
    return retrieval_splits(Splits(*parts, [str(label) for label in range(10)]), split)


def test_has_the_settings_of_their_code() -> None:
    config = recipe()
    task, optimizer, backbone = config.task, config.optimizer, config.backbone
    assert isinstance(task, HashingConfig)
    assert isinstance(optimizer, AdamConfig)
    assert isinstance(backbone, PretrainedConfig)
    assert (backbone.name, backbone.pretrained, backbone.crop_pct) == ("vgg16", True, 224 / 256)
    assert (config.rule.scale, config.rule.include, config.rule.exclude) == (Scale.xavier, ["*"], [])
    assert (task.bits, task.top_k, task.refined, task.bank, task.head_std) == (32, 5000, True, False, 0.01)
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas) == (1e-5, 5e-4, [0.9, 0.999])
    assert (optimizer.lr * task.head_lr_factor, optimizer.lr * task.proxy_lr_factor) == (1e-4, 1e-3)
    assert (config.epochs, config.patience, config.batch_size, config.seed) == (20, 10, 128, 0)
    assert (config.split.protocol, config.split.queries) == ("cifar10-authors", Queries.pooled)
    assert (config.dataset.crop_padding, config.dataset.flip) == (0, False)
    assert (config.schedule.name, config.schedule.warmup_epochs) == ("constant", 0)


@pytest.mark.parametrize("loss", [HashLoss.dch, HashLoss.hyp2, HashLoss.dpsh])
def test_takes_a_step_at_224_pixels(loss: HashLoss) -> None:
    config = recipe("rule=usf", "backbone=alexnet", f"task.loss={loss}", "batch_size=2", *UNTRAINED)
    data = images(config)
    learner, conversion, notes = build(config, None, data, CPU, ALONE)
    assert "resized: 32x32 -> 224x224, bilinear, the centre of 256x256" in notes
    assert len(conversion.feedback) == 8  # every layer, first and last included
    assert {"features.0", "classifier.6"} <= set(conversion.feedback)
    rates = {10.0, 1.0} | ({100.0} if loss is HashLoss.hyp2 else set())
    assert {group["lr_factor"] for group in learner.optimizer.param_groups} == rates
    head = learner.network.backbone.get_submodule("classifier.6").weight.detach()
    before = head.clone()
    assert head.shape == (32, 4096)
    assert float(head.std()) == pytest.approx(0.01, rel=0.02)
    batch = next(iter(datasets.Loader(data.train, 2, CPU, config.seed).epoch(0)))
    value, _ = training.Step(learner, 2)(batch, 2)
    assert torch.isfinite(value)
    assert not torch.equal(before, head)


def test_vgg_keeps_its_fully_connected_layers() -> None:
    config = recipe(*UNTRAINED)
    with torch.device("meta"):
        network = backbones.build(config.backbone, (3, 32, 32), 32, config.dataset.mean, config.dataset.std)
    assert (
        sum(parameter.numel() for parameter in network.parameters()) == 138_357_544 - 1000 * 4097 + 32 * 4097
    )
    assert network.aliases["head"] == "classifier.6"
    assert network.size == (224, 224)
