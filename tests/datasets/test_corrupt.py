"""Images that cannot be decoded: named, or left out and counted, in memory and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made import make_loader, pairs
from PIL import Image
from sklearn.datasets import load_sample_image

from sstune.datasets import Split, Splits, batches, folder, load
from sstune.datasets.contents import scan
from sstune.datasets.decoding import open_image
from sstune.schema import FolderConfig, RequestError

Config = Callable[..., FolderConfig]
Pack = Callable[..., Path]

BROKEN = "train/one/3.JPEG"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    root, image = tmp_path / "photographs", Image.fromarray(load_sample_image("china.jpg"))
    for i, split in enumerate(["train"] * 10 + ["test"] * 3):
        for j, name in enumerate(("one", "two")):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            at = 40 * i, 90 * j
            image.crop((*at, at[0] + 40, at[1] + 40)).save(root / split / name / f"{i}.JPEG")
    return root


@pytest.fixture
def broken(photographs: Path) -> Path:
    """The photographs with a file that ends early."""
    file = photographs / BROKEN
    file.write_bytes(file.read_bytes()[:-200])
    return photographs


def test_pil_notices_a_jpeg_that_ends_early_wherever_it_does(photographs: Path) -> None:
    content = (photographs / BROKEN).read_bytes()
    assert open_image(content).size == (40, 40)
    for kept in [*range(0, len(content), 97), len(content) - 1]:
        with pytest.raises(Exception, match=r"."):
            open_image(content[:kept])


@pytest.fixture(params=["directory", "archive", "streamed"])
def config(request: pytest.FixtureRequest, broken: Path, pack: Pack, folder_config: Config) -> Config:
    """``config(**fields)``: the broken photographs in each of the ways that they can be read."""
    root = pack(broken, "photographs.tar.gz") if request.param == "archive" else broken
    stream = request.param == "streamed"

    def config(**fields: object) -> FolderConfig:
        return folder_config(root, **{"stream": stream, "image_size": 40, **fields})

    return config


def everything(splits: Splits) -> list[torch.Tensor]:
    return [
        torch.cat([images for images, _ in pairs(batches(split, 4, "cpu"))])
        for split in (splits.train, splits.val, splits.test)
    ]


def test_one_is_an_error_that_names_file_and_source(config: Config) -> None:
    chosen = config()
    with pytest.raises(RequestError) as caught:
        everything(load(chosen, workers=2))
    message = str(caught.value)
    assert "\n" not in message
    assert f"cannot decode {BROKEN} in {chosen.root}: " in message
    assert "truncated" in message.lower()
    assert "dataset.skip_corrupt=true" in message


def test_one_is_left_out_and_counted(config: Config, photographs: Path) -> None:
    splits = load(config(skip_corrupt=True), workers=0)
    assert splits.skipped == [BROKEN]
    assert splits.skipped_summary == {"n": 1, "first": [BROKEN]}
    assert splits.notes == [f"skipped 1 images that cannot be decoded: {BROKEN}"]
    assert [len(splits.train), len(splits.val), len(splits.test)] == [17, 2, 6]
    pixels = torch.cat(everything(splits))
    kept = [
        file for file in photographs.rglob("*.JPEG") if file.relative_to(photographs).as_posix() != BROKEN
    ]
    expected = {np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in kept}
    assert {(image * 255).round().byte().numpy().tobytes() for image in pixels} == expected


def test_the_cache_remembers_which(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(config(skip_corrupt=True), workers=0)
    monkeypatch.setattr(folder, "decode", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr(folder.ImageFiles, "corrupt", lambda *_: pytest.fail("read again"))
    again = load(config(skip_corrupt=True), workers=0)
    assert again.skipped == [BROKEN]
    assert (again.train.digest, again.val.digest) == (first.train.digest, first.val.digest)
    with pytest.raises(RequestError, match=f"cannot decode {BROKEN}"):  # whatever is cached
        everything(load(config(), workers=0))


def test_a_cache_without_corrupt_images_serves_both(
    photographs: Path, folder_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = load(folder_config(photographs))
    monkeypatch.setattr(folder, "decode", lambda *_: pytest.fail("decoded again"))
    lenient = load(folder_config(photographs, skip_corrupt=True))
    assert lenient.skipped == []
    assert lenient.notes == []
    assert lenient.train.digest == strict.train.digest


def test_a_repaired_file_is_seen_by_the_next_process(broken: Path, folder_config: Config) -> None:
    config = folder_config(broken, stream=True, image_size=40, skip_corrupt=True)
    assert load(config).skipped == [BROKEN]
    Image.open(broken / "train/one/4.JPEG").save(broken / BROKEN)
    scan.cache_clear()  # as in another process
    assert load(config).skipped == []


def test_a_damaged_list_is_made_anew(
    broken: Path, folder_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    config = folder_config(broken, stream=True, image_size=40, skip_corrupt=True)
    load(config)
    (file,) = Path(config.cache).glob("corrupt-*")
    assert list(json.loads(file.read_text())) == [BROKEN]
    file.write_text("[1, 2")
    assert load(config).skipped == [BROKEN]
    assert "cannot be used" in caplog.text
    assert list(json.loads(file.read_text())) == [BROKEN]


def test_training_on_a_stream_ends_with_the_name(broken: Path, folder_config: Config) -> None:
    for file in (broken / "train/one").iterdir():
        file.write_bytes((broken / BROKEN).read_bytes())
    splits = load(folder_config(broken, stream=True, image_size=40), workers=1)
    with pytest.raises(RequestError, match=r"^dataset.root: cannot decode train/one/\d.JPEG in "):
        list(pairs(make_loader(splits.train, 4, "cpu", 0, crop_scale=0.5).epoch(0)))


def test_a_row_has_twenty_names_and_the_number_of_all() -> None:
    split = Split(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    splits = Splits(split, split, split, ["a"], [f"{i:02}" for i in range(30)])
    assert splits.skipped_summary == {"n": 30, "first": [f"{i:02}" for i in range(20)]}
    assert splits.notes == ["skipped 30 images that cannot be decoded: 00, 01, 02, ..."]
