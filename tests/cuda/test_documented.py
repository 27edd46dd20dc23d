"""The command lines of README.md and docs/ on the pretended GPU with ``device=auto``, and the benches."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_docs
import test_readme
import torch
from lines import DATA, Answer, Drive, sstune
from PIL import Image

from sstune.backbones.cifar_resnet import CifarResNet

BENCH = str(Path(__file__).parents[2] / "scripts" / "bench.py")
SMALL = [*DATA, "backbone=mlp", "backbone.hidden=[16]", "epochs=1", "batch_size=16", "device=auto"]
FEW = ["attack.n=12", "attack.eps=[8/255]", "audit.black_box_n=8", "audit.label_n=6"]
FEW += ["audit.square_queries=3", "audit.label_queries=4"]
# Longer settings of lines that show them; an attack of a line that shows none of them makes its own number.
SHORTER = {"attack.steps": "2", "attack.eot": "2", "attack.n": "12", "seed": "0,1"}
# What a line names that is not here, published data and launchers; it is then run on the digits.
LEFT_OUT = ("dataset=", "dataset.root=", "experiment=imagenet", "hydra", "backbone.pretrained=")
FACTORY = """
import torch
def make():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


@pytest.fixture(scope="module")
def told(drive: Drive, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Answer]]:
    """Each line as it was run, and what it gave; all of one process."""
    directory = tmp_path_factory.mktemp("documented")
    (directory / "factories.py").write_text(FACTORY)
    make_photographs(directory)
    first = [sstune("train", *SMALL, "rule=bp", "out=net"), sstune("train", *SMALL, "rule=usf", "out=net")]
    assert [answer.status for answer in drive(first, directory)] == [0, 0]
    run, other = sorted((directory / "net" / "train").iterdir())
    requests = [*readme(), *docs(str(run), str(other)), *benches()]
    answers = drive(requests, directory)
    return [(shlex.join(asked["line"]), answer) for asked, answer in zip(requests, answers, strict=True)]


def readme() -> list[dict[str, Any]]:
    """The quick start, each line with the same small settings, so that one goes on from the other."""
    lines = [shlex.split(line)[1:] for line in test_readme.prompts() if line.startswith("sstune ")]
    assert {line[0] for line in lines} == {"train", "finetune", "attack", "report"}
    return [sstune(*line, *([] if line[0] == "report" else [*SMALL, *FEW[:2]])) for line in lines]


def docs(run: str, other: str) -> list[dict[str, Any]]:
    """Lines that start from a run, which is there, or from the default one."""
    found = []
    for page in test_docs.PAGES:
        if page.name == "hashing.md":  # other splits: see test_hashing_on_a_device.py
            continue
        for _, command, *words in test_docs.command_lines(page):
            kept = [replaced(word, run, other) for word in words if not word.startswith(LEFT_OUT)]
            given = any(word.startswith(("init_from", "model.factory")) for word in kept)
            kept = [word for word in kept if not (given and word.startswith("backbone"))]
            small = [word for word in SMALL if not (given and command == "attack" and word[:8] != "device=")]
            if given or any(word.startswith("backbone=") for word in kept):
                small = [word for word in small if not word.startswith("backbone")]
            found.append(sstune(command, *small, *FEW, *kept, f"out=page{len(found)}"))
    return found


def replaced(word: str, run: str, other: str) -> str:
    key, sign, _ = word.partition("=")
    values = {"init_from": run, "audit.surrogate": other, "model.factory": "factories:make", **SHORTER}
    word = f"{key}={values[key]}" if sign and key in values else word
    return word.replace("alexnet_bn", "resnet20")  # which takes images as small as the digits


def benches() -> list[dict[str, Any]]:
    """Of scripts/bench.py, on ``photographs`` and ``resnet20.th``; nothing is compiled.

    Not ``train``: the products of large matrices, whose speed it measures on CUDA, take a CPU minutes.
    """
    data = "--data photographs --device cuda"
    words = [
        "step --backbone resnet20 --batch-size 4 --image-size 8 --rounds 2 --warmup 1 --rules usf brsf dfa",
        f"attack {data} --checkpoint resnet20.th --n 8 --share 4 --steps 2 --eps 2/255 8/255",
    ]
    return [{"line": [BENCH, *line.split()]} for line in words]


def make_photographs(directory: Path) -> None:
    """Ten classes of coloured noise, as a folder like cifar10-jpeg's, and a ResNet-20 for them."""
    noise = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 2)):
        for name in range(10):
            folder = directory / "photographs" / split / f"class{name}"
            folder.mkdir(parents=True)
            for number in range(n):
                pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    torch.manual_seed(0)
    torch.save({"state_dict": CifarResNet(3, 3, 10).state_dict()}, directory / "resnet20.th")


def test_every_line_works(told: list[tuple[str, Answer]]) -> None:
    assert len(told) >= 15
    assert {line: answer.err[-500:] for line, answer in told if answer.status} == {}
