"""Small ImageFolder trees of real handwritten digits, as directories and as archives."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from made import pairs
from PIL import Image
from sklearn.datasets import load_digits

from sstune import backbones, datasets, rules
from sstune.attacks import ATTACKS, GradientSource, Victim, run_attack
from sstune.schema import BackboneConfig, ClassificationConfig, FolderConfig, Gradient, PgdConfig, RuleConfig
from sstune.tasks.classification import Classification

COUNTS = {"train": 10, "test": 4}  # images per class
CLASSES = ["eight", "one", "zero"]
_VALUES = {"zero": 0, "one": 1, "eight": 8}


@pytest.fixture(scope="session")
def digit_images() -> dict[str, npt.NDArray[np.uint8]]:
    """``<split>/<class>/<file>`` -> grey 8x8 pixels, each image different from all others."""
    bunch = load_digits()
    images = {}
    for name in CLASSES:
        members = iter(bunch.images[bunch.target == _VALUES[name]].astype(np.uint8) * 15)
        for split, n in COUNTS.items():
            images.update({f"{split}/{name}/{i:04d}.png": next(members) for i in range(n)})
    return images


@pytest.fixture
def tree(tmp_path: Path, digit_images: dict[str, npt.NDArray[np.uint8]]) -> Path:
    """The digit images as a directory of PNG files."""
    root = tmp_path / "digits"
    for path, pixels in digit_images.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)
    return root


Pack = Callable[..., Path]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Make an archive of a directory: ``pack(directory, "name.tar.xz", prefix="", order=sorted)``."""

    def pack(
        directory: Path,
        name: str,
        prefix: str = "",
        order: Callable[[list[Path]], list[Path]] = sorted,
    ) -> Path:
        archive = tmp_path / name
        suffix = archive.suffix[1:]
        with tarfile.open(archive, "w" if suffix == "tar" else f"w:{suffix}") as tar:  # type: ignore[call-overload]
            for file in order([path for path in directory.rglob("*") if path.is_file()]):
                tar.add(file, prefix + file.relative_to(directory).as_posix())
        return archive

    return pack


@pytest.fixture
def folder_config(tmp_path: Path) -> Callable[..., FolderConfig]:
    """``folder_config(root, **fields)``: a FolderConfig whose cache lies below ``tmp_path``."""

    def config(root: Path, **fields: Any) -> FolderConfig:
        chosen: dict[str, Any] = {"cache": str(tmp_path / "cache"), **fields}
        return FolderConfig(name="folder", label="d", mean=[0.0], std=[1.0], root=str(root), **chosen)

    return config


@pytest.fixture(scope="session")
def photograph() -> Callable[..., Path]:
    """``photograph(path, size, seed)`` writes a JPEG file of 4x4 random colours, enlarged, and returns it."""

    def photograph(path: Path, size: tuple[int, int], seed: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(colours).resize(size).save(path)
        return path

    return photograph


@pytest.fixture
def check_zero_eps() -> Callable[[datasets.Splits], None]:
    """Fails unless with eps = 0 test images are judged as without an attack, through either gradient."""

    def check_zero_eps(splits: datasets.Splits) -> None:
        torch.manual_seed(0)
        same = [0.5] * splits.channels
        network = backbones.build(BackboneConfig("resnet20"), splits.shape, splits.n_classes, same, same)
        rules.convert(network.backbone, RuleConfig("usf"), seed=0)
        network.eval()
        split = splits.test.take(datasets.evenly_spaced(20, len(splits.test)))
        with torch.no_grad():
            (logits,) = (
                network(images) for images, _ in pairs(datasets.batches(split, 20, torch.device("cpu")))
            )
        split.targets[::2] = logits.argmax(1)[::2]  # it has learned nothing; half of them shall be right
        clean = logits.argmax(1) == split.targets
        assert 10 <= int(clean.sum()) < 20
        task = Classification(ClassificationConfig("classification"), splits.n_classes)
        victim = Victim.of(network, task, split, torch.arange(20), torch.device("cpu"))
        pgd = ATTACKS["pgd"](PgdConfig("pgd", ["0"], steps=2), 0)
        for gradient in (Gradient.rule, Gradient.exact):
            right = run_attack(victim, pgd, GradientSource(gradient, network), 0.0, 7).robust
            assert torch.equal(right, clean)

    return check_zero_eps
