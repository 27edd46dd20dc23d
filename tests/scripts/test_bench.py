"""The benchmark runs and says what it measures; its figures are nobody's test."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sstune import datasets
from sstune.composition import compose

BENCH = Path(__file__).parents[2] / "scripts" / "bench.py"


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The bench finds the modules beside it; only in it, subnormal numbers are taken for zero."""
    monkeypatch.syspath_prepend(BENCH.parent)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Ten classes of coloured noise, as a folder like cifar10-jpeg's."""
    noise = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 2)):
        for name in range(10):
            folder = tmp_path / "photographs" / split / f"class{name}"
            folder.mkdir(parents=True)
            for number in range(n):
                pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photographs"


def test_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "step.csv"
    small = [
        "--backbone",
        "resnet20",
        "--batch-size",
        "4",
        "--image-size",
        "8",
        "--rounds",
        "2",
        "--warmup",
        "1",
    ]
    rules = ["--rules", "usf scale=xavier", "frsf", "brsf"]
    monkeypatch.setattr(
        sys, "argv", ["bench.py", "step", *small, *rules, "--device", "cpu", "--out", str(out)]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCH), run_name="__main__")
    assert ended.value.code == 0
    frame = pd.read_csv(out).set_index("rule")
    assert list(frame.index) == ["bp", "usf scale=xavier", "frsf", "brsf"]
    assert frame.loc["bp", "ratio"] == 1
    assert frame.loc["bp", "peak_over_bp_mib"] == 0
    assert (frame["seconds"] > 0).all()
    weights = frame.loc["frsf", "weights_mib"]
    assert frame.loc["frsf", "peak_over_bp_mib"] == pytest.approx(weights, abs=0.2)
    assert "median" not in capsys.readouterr().err


def test_train(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # decoded images are cached there
    out = tmp_path / "made" / "train.csv"
    line = [
        "--data",
        str(photographs),
        "--batch-size",
        "4",
        "--rounds",
        "2",
        "--steps",
        "1",
        "--workers",
        "0",
    ]
    line += [
        "--warmup",
        "1",
        "--compile",
        "none",
        "--rules",
        "bp",
        "usf",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["bench.py", "train", *line])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCH), run_name="__main__")
    assert ended.value.code == 0
    frame = pd.read_csv(out).set_index(["rule", "side"])
    sides = ["plain", "tuned", "ours"] + (["biotorch"] if importlib.util.find_spec("biotorch") else [])
    assert list(frame.index) == [(rule, side) for rule in ("bp", "usf") for side in sides]
    plain, tuned, ours = (frame.xs(side, level="side") for side in ("plain", "tuned", "ours"))
    for name, other in (("speedup", plain), ("over_tuned", tuned)):
        assert (other[[name, f"{name}_q1", f"{name}_q3"]] == 1).all(axis=None)
        assert (ours[f"{name}_q1"] > 0).all()
        assert (ours[f"{name}_q1"] <= ours[name]).all()
        assert (ours[name] <= ours[f"{name}_q3"]).all()
    assert set(plain["precision"]) == {"float32"}
    assert set(tuned["precision"]) == set(ours["precision"]) == {"bf16"}
    assert set(frame["compiled"]) == {"none"}
    for positive in ("images_per_second", "mfu", "peak_gflops", "memory_mib"):
        assert (frame[positive] > 0).all(), positive
    assert frame["loader_share"].between(0, 1).all()
    assert frame.loc[("usf", "ours"), ["batch_size", "rounds", "steps", "workers"]].tolist() == [4, 2, 1, 0]


def test_retrieval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "made" / "retrieval.csv"
    small = ["--queries", "20", "--items", "1500", "--many", "3000", "--bits", "12", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["bench.py", "retrieval", *small, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCH), run_name="__main__")
    assert ended.value.code == 0
    frame = pd.read_csv(out).set_index("what")
    names = ["average precision", "all metrics", "all metrics, K", "all metrics, labels", "refined order"]
    names += ["nearest"] + (["faiss"] if importlib.util.find_spec("faiss") else [])
    assert list(frame.index) == names * 2
    assert frame["queries"].tolist() == [20] * len(names) + [100] * len(names)
    assert (frame["cpu_seconds"] > 0).all()
    assert (frame["peak_mb"].drop("faiss", errors="ignore") > 0).all()
    assert frame.loc["all metrics", "bar"].tolist() == [1, 2]
    assert frame.loc["all metrics", "within"].all()


def test_ours_trains_as_the_engine_does_and_waits_are_counted(photographs: Path, tmp_path: Path) -> None:
    """Both sides really take their steps, over the end of an epoch, and leave weights that have moved."""
    import bench_sides

    arguments = SimpleNamespace(
        data=photographs, backbone="resnet20", batch_size=16, precision="float32", compile="none"
    )
    overrides = ["experiment=cifar10_jpeg", f"dataset.root={photographs}", f"dataset.cache={tmp_path}"]
    data = datasets.load(compose("train", overrides).dataset)
    full = len(data.train) // 16
    for name in ("ours", "tuned", "plain"):
        turns = bench_sides.side(name, "usf", arguments, data, torch.device("cpu"), 0)
        before = turns.network.backbone.conv1.weight.detach().clone()
        passes: list[int] = []
        turns.network.backbone.conv1.register_forward_pre_hook(
            lambda module, inputs, passes=passes: passes.append(len(inputs[0]))
        )
        turns.train(full + 1)
        assert passes == [16] * (full + 1)
        assert not torch.equal(turns.network.backbone.conv1.weight, before)
        assert turns.data_seconds > 0
