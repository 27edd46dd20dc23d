"""ImageNet and Tiny ImageNet in their official layouts, with fewer images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sstune.datasets import load, trees
from sstune.datasets.contents import scan
from sstune.schema import FolderConfig, RequestError

Photograph = Callable[..., Path]


class TestTinyImagenet:
    @pytest.fixture
    def official(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photograph: Photograph
    ) -> FolderConfig:
        """The official layout: 200 classes of 3 training and 1 labelled image, and unlabelled test images."""
        monkeypatch.setattr(trees, "TINY_IMAGENET", (3, 1))
        root = tmp_path / "tiny-imagenet-200"
        wnids = [f"n{i:08}" for i in np.random.default_rng(0).permutation(200)]
        for c, wnid in enumerate(wnids):
            for i in range(3):
                photograph(root / f"train/{wnid}/images/{wnid}_{i}.JPEG", (64, 64), seed=4 * c + i)
            photograph(root / f"val/images/val_{c}.JPEG", (64, 64), seed=4 * c + 3)
        photograph(root / "test/images/test_0.JPEG", (64, 64), seed=0)
        (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
        boxes = [f"val_{c}.JPEG\t{wnid}\t0\t0\t63\t63\n" for c, wnid in enumerate(wnids)]
        (root / "val/val_annotations.txt").write_text("".join(boxes))
        return FolderConfig(
            name="tiny_imagenet",
            root=str(root),
            test_split="val",
            val_fraction=0.3,
            cache=str(tmp_path / "cache"),
        )

    @pytest.mark.parametrize("stream", [False, True])
    def test_labelled_val_is_the_test_split(self, official: FolderConfig, stream: bool) -> None:
        official.stream, official.image_size = stream, 64 if stream else None
        splits = load(official, workers=0)
        assert [len(splits.train), len(splits.val), len(splits.test)] == [420, 180, 200]
        assert splits.shape == (3, 64, 64)
        lines = (Path(official.root) / "val/val_annotations.txt").read_text().splitlines()
        wnid_of = dict(line.split("\t")[:2] for line in lines)
        assert splits.classes == sorted(wnid_of.values())
        ordered = sorted(wnid_of, key=lambda name: wnid_of[name])
        assert splits.test.targets.tolist() == list(range(200))
        if not stream:
            first = np.asarray(Image.open(Path(official.root) / "val/images" / ordered[0])).transpose(2, 0, 1)
            assert np.array_equal(splits.test.images[0].numpy(), first)

    def test_labels_of_another_file_are_another_cache(self, official: FolderConfig) -> None:
        before = load(official)
        file = Path(official.root) / "val/val_annotations.txt"
        lines = file.read_text().splitlines()
        one, two = lines[0].split("\t"), lines[1].split("\t")
        one[1], two[1] = two[1], one[1]
        file.write_text("\n".join(["\t".join(one), "\t".join(two), *lines[2:]]) + "\n")
        assert load(official).test.digest != before.test.digest

    def test_another_layout_number_or_size_is_another_dataset(
        self, official: FolderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = Path(official.root)
        hint = r"; use dataset=folder with a dataset.label of its own$"
        monkeypatch.setattr(trees, "TINY_IMAGENET", (500, 50))
        with pytest.raises(
            RequestError, match=r"600 \+ 200 images of 200 classes, expected 100000 \+ 10000" + ".*" + hint
        ):
            load(official)
        monkeypatch.setattr(trees, "TINY_IMAGENET", (3, 1))
        for file in root.rglob("*.JPEG"):
            Image.open(file).resize((32, 32)).save(file)
        scan.cache_clear()
        with pytest.raises(RequestError, match="images of 32x32 pixels, expected 64x64" + hint):
            load(official)
        (root / "val/val_annotations.txt").unlink()
        with pytest.raises(RequestError, match=r"is not the official tiny-imagenet-200: .*" + hint):
            load(official)

    def test_the_small_archive_is_refused(self) -> None:
        shared = Path(os.environ.get("SSTUNE_SHARED", Path(__file__).parents[2].parent / "shared"))
        archive = shared / "data" / "tiny-imagenet-32.tar.xz"
        if not archive.exists():
            pytest.skip(
                f"{archive} is absent; set SSTUNE_SHARED to the folder that holds data/{archive.name}"
            )
        with pytest.raises(RequestError, match=r"use dataset=folder with a dataset.label of its own"):
            load(FolderConfig(name="tiny_imagenet", root=str(archive), test_split="val"))


def test_imagenet_has_1000_classes(tmp_path: Path, photograph: Photograph) -> None:
    content = photograph(tmp_path / "one.JPEG", (30, 20), seed=0).read_bytes()
    for c in range(1000):
        for name in ("train/{}/a.JPEG", "train/{}/b.JPEG", "val/{}/c.JPEG"):
            file = tmp_path / "imagenet" / name.format(f"n{c:08}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    config = FolderConfig(
        name="imagenet",
        root=str(tmp_path / "imagenet"),
        test_split="val",
        image_size=16,
        stream=True,
        cache=str(tmp_path / "cache"),
    )
    splits = load(config)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [1800, 200, 1000]
    assert splits.classes == [f"n{c:08}" for c in range(1000)]
    assert splits.test.targets.tolist() == list(range(1000))
    for name in ("train", "val"):
        folder = tmp_path / "imagenet" / name / "n00000999"
        folder.rename(tmp_path / name)
    scan.cache_clear()
    with pytest.raises(
        RequestError, match=r"is not ImageNet-1k: 999 classes, expected 1000; use dataset=folder"
    ):
        load(config)
