"""``sstune retrieve``, the picture of nearest images of an attack, and ``codes.npz`` read without sstune."""

from __future__ import annotations

import json
import os
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from sstune import backbones, cli
from sstune.cli import main
from sstune.commands.data import arranged
from sstune.commands.lineage import open_source
from sstune.commands.weights import Weights
from sstune.report import nearest as drawing
from sstune.report.nearest import Found, neighbour_grid
from sstune.tasks.hashing import reference

Ask = Callable[..., Any]
LINE = [
    *("dataset=digits", "task=hashing", "task.bits=16", "split.n_query=20", "split.n_train=80"),
    *("split.n_val=10", "backbone=mlp", "epochs=2", "threads=1", "device=cpu"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with codes of 16 bits; leave it as it is."""
    out = tmp_path_factory.mktemp("hashing")
    assert main(["train", *LINE, f"out={out}"]) == 0
    (run,) = (out / "train").iterdir()
    return run


@pytest.fixture(scope="module")
def data(trained: Path) -> Any:
    config = open_source(trained).config
    assert config is not None
    return arranged(config)


@pytest.fixture
def queries(data: Any, tmp_path: Path) -> list[Path]:
    """Two queries of the test split as files: of 8 x 8 grey pixels, and the same in colour."""
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path, image, mode in zip(paths, data.test.images[:2], ("L", "RGB"), strict=True):
        Image.fromarray(image[0].numpy()).convert(mode).save(path)
    return paths


def codes_of(run: Path, images: torch.Tensor) -> np.ndarray:
    """(N, 16) bool, by the network alone."""
    source = open_source(run)
    config = source.config
    assert config is not None
    network = backbones.build(config.backbone, (1, 8, 8), 16, config.dataset.mean, config.dataset.std)
    Weights(source).load_into(network)
    with torch.no_grad():
        return (network.eval()(images.float() / 255) >= 0).numpy()


def expected(run: Path, data: Any, images: torch.Tensor, n: int) -> list[list[tuple[str, ...]]]:
    """The n nearest items of each image by brute force: rank, distance, label, name."""
    database = codes_of(run, data.database.images)
    found = []
    for code in codes_of(run, images):
        distances = (database != code).sum(1)
        order = sorted(range(len(distances)), key=lambda place: (distances[place], place))[:n]
        found.append(
            [
                (
                    str(rank),
                    str(distances[place]),
                    data.classes[data.database.targets[place]],
                    f"image {data.indices['database'][place]}",
                )
                for rank, place in enumerate(order, start=1)
            ]
        )
    return found


def tables(text: str) -> dict[str, list[tuple[str, ...]]]:
    """Query -> its lines."""
    found: dict[str, list[tuple[str, ...]]] = {}
    query = ""
    for line in text.split("\nwrote")[0].splitlines():
        if line.startswith("  "):
            found[query].append(tuple(re.split(r"\s{2,}", line.strip())))
        elif line:
            query = line
            found[query] = []
    for lines in found.values():
        assert lines.pop(0) == ("rank", "distance", "label", "image")
    return found


class TestRetrieve:
    def test_the_nearest_images_by_brute_force(
        self, ask: Ask, trained: Path, data: Any, queries: list[Path]
    ) -> None:
        answer = ask("retrieve", str(trained), str(queries[0]), "--n", "5", str(queries[1]))
        assert (answer.status, answer.err) == (0, "")
        found = tables(answer.out)
        assert list(found) == list(map(str, queries))
        assert list(found.values()) == expected(trained, data, data.test.images[:2], 5)

    def test_ten_by_default_and_a_picture(
        self, ask: Ask, trained: Path, queries: list[Path], tmp_path: Path
    ) -> None:
        """The line of README.md."""
        for name in ("RUN_DIR", "query.jpg"):
            (tmp_path / name).symlink_to(trained if name == "RUN_DIR" else queries[0])
        answer = ask(*["retrieve", "RUN_DIR", "query.jpg", "--out", "made/nearest.png"])
        assert answer.status == 0
        assert len(tables(answer.out)["query.jpg"]) == 10
        assert answer.out.endswith("\nwrote\n  made/nearest.png\n")
        with Image.open(tmp_path / "made" / "nearest.png") as image:
            assert image.width > 1000
            assert image.height > 90

    def test_images_of_another_size_are_resized_and_cropped(
        self, ask: Ask, trained: Path, data: Any, tmp_path: Path
    ) -> None:
        image = Image.fromarray(load_sample_image("china.jpg"))  # 640 x 427, colours
        image.save(tmp_path / "china.png")
        small = image.convert("L").resize((11, 8), Image.Resampling.BILINEAR)
        left = round((small.width - 8) / 2)
        pixels = np.array(small.crop((left, 0, left + 8, 8)))
        answer = ask("retrieve", str(trained), "china.png", "--n", "3")
        (found,) = tables(answer.out).values()
        assert [found] == expected(trained, data, torch.from_numpy(pixels)[None, None], 3)

    @pytest.mark.parametrize("damage", ["absent", "damaged", "other weights"])
    def test_codes_are_made_again(
        self, ask: Ask, trained: Path, queries: list[Path], tmp_path: Path, damage: str
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(trained, run)
        codes = run / "codes.npz"
        if damage == "other weights":
            with np.load(codes) as file:
                content = dict(file)
            np.savez(codes, **content | {"model": np.array("0" * 64), "packed": content["packed"][::-1]})
        else:
            codes.unlink() if damage == "absent" else codes.write_bytes(codes.read_bytes()[:-100])
        kept = ask("retrieve", str(trained), str(queries[0]))
        again = ask("retrieve", str(run), str(queries[0]))
        assert again.status == 0
        first, rest = again.out.split("\n", 1)
        assert first == "codes.npz is absent or of other weights or images: encoding the database"
        assert rest == kept.out

    def test_all_of_a_database_that_is_smaller(self, ask: Ask, tmp_path: Path) -> None:
        small = [
            "split.protocol=cifar10-2",
            "split.n_query=5",
            "split.n_train=6",
            "split.n_val=2",
            "epochs=1",
        ]
        assert ask("train", *LINE, *small, "task.loss=hashnet").status == 0
        (run,) = (tmp_path / "runs" / "train").iterdir()
        Image.new("L", (8, 8)).save("black.png")
        answer = ask("retrieve", str(run), "black.png", "--n", "100", "--out", "all.png")
        assert (
            len(tables(answer.out)["black.png"])
            == json.loads((run / "result.json").read_text())["datasets"]["database"]["n"]
        )

    def test_images_in_files_have_names(self, ask: Ask, tmp_path: Path) -> None:
        """Streamed images of a folder, which are read for the picture."""
        root = tmp_path / "patches"
        for name in ("china", "flower"):
            image = Image.fromarray(load_sample_image(f"{name}.jpg"))
            for number, split in enumerate(["train"] * 16 + ["test"] * 4):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                image.crop((20 * number, 50, 20 * number + 60, 110)).save(
                    root / split / name / f"{number}.png"
                )
        line = [
            *("dataset=folder", "dataset.label=patches", f"dataset.root={root}", "dataset.stream=true"),
            *("dataset.image_size=16", "task=hashing", "task.bits=8", "split.n_query=2", "split.n_train=6"),
            *(
                "split.n_val=2",
                "backbone=mlp",
                "backbone.hidden=[8]",
                "epochs=1",
                "batch_size=8",
                "workers=0",
            ),
            *("threads=1", "device=cpu", f"dataset.cache={tmp_path / 'cache'}"),
        ]
        assert ask("train", *line).status == 0
        (run,) = (tmp_path / "runs" / "train").iterdir()
        query = root / "train" / "china" / "3.png"
        answer = ask("retrieve", str(run), str(query), "--n", "40", "--out", "nearest.png")
        assert answer.status == 0
        (found,) = tables(answer.out).values()
        itself = [line for line in found if line[3] == "train/china/3.png"]
        assert [line[1:3] for line in itself] in ([], [("0", "china")])  # it may be a validation image
        assert all((root / name).is_file() and name.split("/")[1] == label for _, _, label, name in found)
        assert (tmp_path / "nearest.png").exists()

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("", "retrieve: the following arguments are required: RUN, IMAGE; see sstune retrieve --help"),
            ("RUN", "retrieve: the following arguments are required: IMAGE; see sstune retrieve --help"),
            ("RUN one.png --top 3", "retrieve: unrecognized arguments: --top"),
            ("RUN one.png --n 0", "--n: 0 is out of range, expected 1 to 1000"),
            ("RUN one.png --n x", "retrieve: argument --n: invalid int value: 'x'"),
            ("RUN absent.png", "retrieve: absent.png does not exist"),
            ("RUN text.png", "text.png: cannot be read as an image (not a JPEG"),
            ("RUN .", ".: cannot be read as an image (is a directory)"),
            ("RUN fifo", "fifo: cannot be read as an image (is a FIFO)"),
            ("RUN one.png cut.png", "cut.png: cannot be read as an image"),
            ("RUN one.png --out one.jpg", "--out one.jpg: expected a file FILE.png"),
            (
                "RUN one.png --out text.png/a.png",
                "--out text.png/a.png: text.png is a file, expected a directory",
            ),
            (". one.png", "retrieve: . is not a finished train or finetune run"),
            ("absent one.png", "retrieve: cannot read absent: No such file or directory"),
            ("RUN/model.pt one.png", "model.pt is a file, expected the directory of a run"),
            ("OTHER one.png", "has task=classification, which searches no database"),
        ],
    )
    def test_errors_are_one_line(
        self, ask: Ask, trained: Path, chain: Any, queries: list[Path], line: str, message: str
    ) -> None:
        Path("text.png").write_text("text")
        Path("cut.png").write_bytes(queries[0].read_bytes()[:-40])
        os.mkfifo("fifo")
        for name, run in (("RUN", trained), ("OTHER", chain.train)):
            Path(name).symlink_to(run)
        answer = ask("retrieve", *line.split())
        assert (answer.status, answer.out, len(answer.errors)) == (2, "", 1)
        assert message in answer.err

    def test_damaged_weights_are_refused(self, ask: Ask, trained: Path, queries: list[Path]) -> None:
        shutil.copytree(trained, "run")
        Path("run/model.pt").write_bytes(b"")
        answer = ask("retrieve", "run", "one.png")
        assert answer.status == 2
        assert answer.err.startswith("sstune: retrieve: run/model.pt is damaged")

    def test_help(self, ask: Ask) -> None:
        answer = ask("retrieve", "--help")
        assert answer.status == 0
        assert answer.out.startswith("usage: sstune retrieve")
        assert "retrieve" in cli.help_text()


@pytest.fixture(scope="module")
def attacked(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attack on queries that keeps three of them."""
    out = tmp_path_factory.mktemp("pictures")
    line = ["attack=mainstay", "attack.n=20", "attack.eps=[32/255,128/255]", "attack.steps=3"]
    line += ["attack.save_images=3", "threads=1", "device=cpu", f"init_from={trained}", f"out={out}"]
    assert main(["attack", *line]) == 0
    (run,) = (out / "attack").iterdir()
    return run


class TestImagesOfAnAttack:
    def test_the_nearest_images_are_those_of_the_saved_ones(
        self, attacked: Path, trained: Path, data: Any
    ) -> None:
        with np.load(attacked / "images.npz") as file:
            saved = dict(file)
        cells = ["clean", *(f"{way} {eps}" for way in ("rule", "exact") for eps in ("32/255", "128/255"))]
        assert {f"{cell}/nearest" for cell in cells} == {name for name in saved if name.endswith("/nearest")}
        for cell in cells:
            found = expected(trained, data, torch.from_numpy(saved[cell]), 10)
            names = [[f"image {index}" for index in line] for line in saved[f"{cell}/nearest"]]
            assert names == [[name for _, _, _, name in lines] for lines in found]
            assert saved[f"{cell}/predicted"].shape == (3, 16)

    def test_the_picture_has_a_line_for_each_query_and_cell(self, attacked: Path) -> None:
        with Image.open(attacked / "images.png") as image:
            assert image.width > 1000
            assert image.height > 3 * 5 * 120


class TestPicture:
    def test_frames_captions_and_continued_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        frames, texts = [], []
        real = drawing.Rectangle

        def rectangle(*place: Any, **look: Any) -> Any:
            frames.append((look["edgecolor"], look["linestyle"] == "-"))
            return real(*place, **look)

        monkeypatch.setattr(drawing, "Rectangle", rectangle)
        text = drawing.Axes.text
        monkeypatch.setattr(
            drawing.Axes,
            "text",
            lambda axes, x, y, said, **look: texts.append(said) or text(axes, x, y, said, **look),
        )
        images = np.zeros((12, 3, 6, 9), np.uint8)
        relevant = np.arange(12) % 3 == 0
        one = Found("a $query$", images[0], images, [f"c {number}" for number in range(12)], relevant)
        unknown = Found("other", images[0], images[:1], ["d"])
        assert neighbour_grid([one, unknown], "heading").startswith(b"\x89PNG")
        assert frames == [("#009E73", True) if flag else ("#B3261E", False) for flag in relevant]
        assert texts == ["heading", "a $query$", *(f"c {number}" for number in range(12)), "other", "d"]

    def test_it_is_the_same_each_time(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8)).astype(np.uint8)
        found = [Found("one", images[0], images[1:], list("abc"))]
        assert neighbour_grid(found, "") == neighbour_grid(found, "")


def test_codes_are_read_by_numpy_alone(trained: Path, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example in the module that writes them."""
    monkeypatch.chdir(trained)
    code = re.findall(r"::\n\n(.*?)\n\n", reference.__doc__ or "", re.DOTALL)
    values: dict[str, Any] = {"np": np}
    exec(textwrap.dedent(code[0]), values)
    bits = codes_of(trained, data.database.images)
    distances = (bits != bits[0]).sum(1)
    assert values["distances"].tolist() == distances.tolist()
    order = np.argsort(distances, kind="stable")[:10]
    assert values["nearest"].tolist() == data.indices["database"][order].tolist()
    assert values["labels"].tolist() == data.database.targets.tolist()
    assert (values["codes"] == np.packbits(bits, axis=1)).all()
