"""``task=hashing`` on the command line: training, fine-tuning, attacks, resumption, refusals, the report."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hash_oracles as oracle
import numpy as np
import processes
import pytest
import torch
from PIL import Image
from stopping import StopAfter

from sstune import datasets
from sstune.cli import main
from sstune.commands.train import fit_network
from sstune.composition import compose
from sstune.interrupt import StopFlag, Stopped
from sstune.packing import unpack_values
from sstune.runs import Run
from sstune.schema import RunConfig
from sstune.storage import file_digest

pytestmark = pytest.mark.usefixtures("one_thread")  # bit-equality holds for one number of threads

Ask = Callable[..., Any]
Made = Callable[..., Path]
CPU = torch.device("cpu")
HERE = ["threads=1", "device=cpu"]
NETWORK = ["dataset=digits", "task=hashing", "task.bits=16", "backbone=mlp", "backbone.hidden=[64,48]"]
SPLIT = {"n_query": 4, "n_train": 20, "n_val": 3}  # a class, of ten
LINE = [*NETWORK, *(f"split.{name}={n}" for name, n in SPLIT.items()), *HERE, "batch_size=32", "epochs=2"]
SPLIT_SIZES = {"train": 200, "val": 30, "test": 40, "database": 1797 - 40}
EPS = ["8/255", "24/255"]
ATTACKS = {
    "mainstay": ["attack=mainstay", "attack.steps=5", "attack.step_size=eps/4"],
    "hag": ["attack=hag", "attack.steps=6"],
    "hag_sign": ["attack=hag_sign", "attack.steps=5", "attack.step_size=eps/4"],
    "sdha": ["attack=sdha", "attack.steps=4"],
    "pgd": ["attack=pgd", "attack.steps=3"],
}


def row_of(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``made("train", *overrides)``: directory of that finished run, made once, in a folder of its own."""

    @functools.cache
    def made(command: str, *overrides: str) -> Path:
        out = tmp_path_factory.mktemp(command)
        assert main([command, *overrides, f"out={out}"]) == 0
        return only(out / command)

    return made


@pytest.fixture(scope="module")
def trained(made: Made) -> Path:
    return made("train", *LINE)


def tuned(made: Made, trained: Path, loss: str) -> Path:
    """Fine-tuned with usf."""
    task = ["task=hashing", "task.bits=16", f"task.loss={loss}"]
    overrides = [f"init_from={trained}", "rule=usf", *task, "optimizer.lr=0.01"]
    return made("finetune", *overrides, "batch_size=32", "epochs=1", *HERE)


@pytest.fixture(scope="module", params=["dpsh", "hyp2"])
def finetuned(request: pytest.FixtureRequest, made: Made, trained: Path) -> Path:
    return tuned(made, trained, request.param)


def attacked(made: Made, source: Path, *overrides: str) -> Path:
    return made("attack", f"init_from={source}", f"attack.eps=[{','.join(EPS)}]", *HERE, *overrides)


def splits_of(config: RunConfig) -> datasets.Splits:
    return datasets.retrieval_splits(datasets.load(config.dataset), config.split)


def by_hand(run: Path, images: torch.Tensor) -> torch.Tensor:
    """Outputs of the network in ``model.pt`` for uint8 images."""
    state = torch.load(run / "model.pt", weights_only=True)["state_dict"]
    x = ((images.float() / 255 - 0.305) / 0.377).flatten(1)
    for name in ("hidden1", "hidden2"):
        x = torch.relu(x @ state[f"{name}.weight"].T + state[f"{name}.bias"])
    return x @ state["head.weight"].T + state["head.bias"]


def precision(outputs: Any, targets: Any, codes: Any) -> list[float]:
    """AP of each query against the codes of ``codes.npz``."""
    database = 2 * np.unpackbits(codes["packed"], axis=1, count=16).astype(int) - 1
    signs = np.where(np.asarray(outputs) >= 0, 1, -1)
    distances = (16 - signs @ database.T) // 2
    relevant = np.asarray(targets)[:, None] == codes["labels"]
    return [
        oracle.average_precision(*pair) for pair in zip(distances.tolist(), relevant.tolist(), strict=True)
    ]


# Rows


class TestTrained:
    def test_row_names_metric_splits_and_settings(self, trained: Path) -> None:
        row = row_of(trained)
        assert {name: entry["n"] for name, entry in row["datasets"].items()} == SPLIT_SIZES
        splits = splits_of(compose("train", LINE))
        assert {name: entry["digest"] for name, entry in row["datasets"].items()} == {
            name: split.digest for name, split in splits.named.items()
        }
        assert row["config"]["split"] == SPLIT
        assert row["config"]["task"]["name"] == "hashing"
        assert row["config"]["task"]["bits"] == 16
        said = "retrieval cifar10-1: 40 queries (from the test split), 200 train, 30 val, database 1,757"
        assert row["notes"] == [said]
        val, test = row["measurements"]
        assert [(each["split"], each["n"], each["metric"]) for each in (val, test)] == [
            ("val", 30, "mAP@all"),
            ("test", 40, "mAP@all"),
        ]
        assert "correct" not in test
        for each in (val, test):
            assert len(each["curves"]["precision at recall"]) == 100
            assert {"mAP_stable@all", "P@100", "R@1000", "P@radius2", "saturated"} <= each["more"].keys()

    def test_codes_are_those_of_the_weights(self, trained: Path) -> None:
        codes, splits = arrays(trained / "codes.npz"), splits_of(compose("train", LINE))
        assert splits.database is not None
        assert splits.indices is not None
        for name, split in (("packed", splits.database), ("train", splits.train)):
            bits = by_hand(trained, split.images) >= 0  # type: ignore[arg-type]
            assert float((np.unpackbits(codes[name], axis=1) == bits.numpy()).mean()) > 0.9999, name
        assert np.array_equal(codes["ids"], splits.indices["database"].numpy())
        assert codes["ids"].tolist() != sorted(codes["ids"])
        assert str(codes["model"]) == file_digest(trained / "model.pt") == row_of(trained)["model_sha256"]

    def test_value_is_mean_average_precision_by_brute_force(self, trained: Path) -> None:
        splits, codes = splits_of(compose("train", LINE)), arrays(trained / "codes.npz")
        outputs = by_hand(trained, splits.test.images)  # type: ignore[arg-type]
        expected = precision(outputs, splits.test.targets, codes)
        found = row_of(trained)["measurements"][1]["value"]
        assert found == pytest.approx(float(np.mean(expected)), abs=1e-6)
        assert found > 0.2  # it has learnt: chance is 0.1

    def test_refined_ties_are_a_further_figure_of_another_run(self, made: Made, trained: Path) -> None:
        plain, refined = row_of(trained), row_of(made("train", *LINE, "task.refined=true"))
        assert refined["identity"] != plain["identity"]
        for one, other in zip(plain["measurements"], refined["measurements"], strict=True):
            assert other["more"].pop("mAP_refined@all") > other["value"]
            assert one == other
        assert "outputs" in arrays(made("train", *LINE, "task.refined=true") / "codes.npz")

    def test_a_shorter_ranking_is_another_metric(self, made: Made, trained: Path) -> None:
        row = row_of(made("train", *LINE, "task.top_k=50"))
        assert row["identity"] != row_of(trained)["identity"]
        assert {each["metric"] for each in row["measurements"]} == {"mAP@50"}

    def test_it_is_answered_from_its_row(self, trained: Path, ask: Ask) -> None:
        answer = ask("train", *LINE, f"out={trained.parents[1]}")
        assert (answer.status, answer.out.splitlines()[-1]) == (0, f"{trained}: done already")


class TestFinetuned:
    def test_task_and_splits_are_the_parents(self, finetuned: Path, trained: Path) -> None:
        row, parent = row_of(finetuned), row_of(trained)
        assert row["datasets"] == parent["datasets"]
        assert row["config"]["split"] == parent["config"]["split"]
        for key, value in parent["config"]["task"].items():
            assert (row["config"]["task"][key] == value) == (key != "loss"), key
        assert row["config"]["rule"]["name"] == "usf"
        assert len(row["layers"]["feedback"]) == 3
        assert (finetuned / "alignment.csv").exists()
        assert file_digest(finetuned / "codes.npz") != file_digest(trained / "codes.npz")
        assert row["measurements"][1]["value"] > 0.2

    def test_a_classifier_gets_a_new_head(self, made: Made) -> None:
        classifier = made("train", "dataset=digits", *NETWORK[3:], *HERE, "epochs=1")
        run = made("finetune", f"init_from={classifier}", *LINE[1:3], *LINE[5:])
        notes = row_of(run)["notes"]
        assert [note for note in notes if "head.weight: new, 16x48 (the file has 10x48)" in note]
        assert row_of(run)["measurements"][1]["value"] > 0.15


class TestAttacked:
    @pytest.mark.parametrize("name", ATTACKS)
    def test_row_has_a_measurement_for_each_gradient_and_eps(
        self, name: str, made: Made, finetuned: Path
    ) -> None:
        run = attacked(made, finetuned, *ATTACKS[name])
        row, parent = row_of(run), row_of(finetuned)
        for section in ("task", "split", "backbone", "rule", "dataset"):
            assert row["config"][section] == parent["config"][section], section
        used = row["datasets"]
        assert used["database"] == parent["datasets"]["database"]
        assert used["test"] == {
            **parent["datasets"]["test"],
            "attacked": parent["datasets"]["test"]["digest"],
        }
        clean, *measured = row["measurements"]
        (test,) = (each for each in parent["measurements"] if each["split"] == "test")
        assert clean["value"] == test["value"]
        bounds = {f"bound {which}" for which in ("own", "class vote", "mainstay")}
        assert clean["more"].keys() == test["more"].keys() | bounds
        assert all(0 <= clean["more"][bound] < clean["value"] for bound in bounds)
        assert [(each["attack"], each["gradient"], each["eps"]) for each in measured] == [
            (name, gradient, eps) for gradient in ("rule", "exact") for eps in EPS
        ]
        for each in measured:
            assert (each["metric"], each["n"]) == ("mAP@all", 40)
            assert 0 <= each["zero_gradients"] <= 1
            assert each["found"] == []
            assert each["more"].keys() == test["more"].keys()
            assert len(each["curves"]["precision at recall"]) == 100

    @pytest.mark.parametrize("name", ATTACKS)
    def test_values_are_those_of_the_saved_outputs(self, name: str, made: Made, trained: Path) -> None:
        source = tuned(made, trained, "dpsh")
        run = attacked(made, source, *ATTACKS[name])
        outcomes, codes = arrays(run / "outcomes.npz"), arrays(source / "codes.npz")
        targets = splits_of(compose("train", LINE)).test.targets
        assert outcomes["samples"].tolist() == list(range(40))
        for each in row_of(run)["measurements"][1:]:
            cell = f"{each['gradient']} {each['eps']}"
            expected = precision(outcomes[f"{cell}/predictions"], targets, codes)
            assert unpack_values(each["values"], 40).tolist() == pytest.approx(expected, abs=1e-6)
            assert outcomes[f"{cell}/achieved"].tolist() == pytest.approx(
                [1 - value for value in expected], abs=1e-6
            )
            assert each["value"] == pytest.approx(float(np.mean(expected)), abs=1e-6)

    def test_exact_gradients_lower_the_precision_more_than_noise(self, made: Made, trained: Path) -> None:
        source = tuned(made, trained, "dpsh")
        noise = row_of(attacked(made, source, "attack=noise", "attack.attempts=3"))["measurements"]
        assert [(each["attack"], each["gradient"], each["eps"]) for each in noise[1:]] == [
            ("noise", None, eps) for eps in EPS
        ]
        assert all("zero_gradients" not in each for each in noise)
        mainstay = row_of(attacked(made, source, *ATTACKS["mainstay"]))["measurements"]
        assert mainstay[-1]["value"] < noise[-1]["value"] - 0.05
        assert mainstay[-1]["value"] < mainstay[-2]["value"] < mainstay[0]["value"]

    def test_lost_codes_are_computed_again(self, made: Made, trained: Path, tmp_path: Path, ask: Ask) -> None:
        source = tuned(made, trained, "dpsh")
        row = row_of(attacked(made, source, *ATTACKS["pgd"]))
        codes = (source / "codes.npz").read_bytes()
        line = ["attack", f"init_from={source}", f"attack.eps=[{','.join(EPS)}]", *HERE, *ATTACKS["pgd"]]
        try:
            for number, content in enumerate((None, b"damaged")):
                (source / "codes.npz").unlink(missing_ok=True)
                if content is not None:
                    (source / "codes.npz").write_bytes(content)
                assert ask(*line, f"out=again{number}").status == 0
                again = row_of(only(tmp_path / f"again{number}" / "attack"))
                for one, other in zip(row["measurements"], again["measurements"], strict=True):
                    assert one.pop("seconds", 0) is not None
                    other.pop("seconds", 0)
                    assert one["value"] == pytest.approx(other["value"], abs=1e-6)
                    assert one["n"] == other["n"]
        finally:
            (source / "codes.npz").write_bytes(codes)

    def test_normalised_otherwise_both_sides_are(self, trained: Path, tmp_path: Path, ask: Ask) -> None:
        """The database's codes are made anew, not those of the run."""
        line = ["attack", f"init_from={trained}", "attack=fgsm", "attack.eps=[0]", *HERE]
        changed = ["dataset.mean=[0.9]", "dataset.std=[0.2]"]
        assert ask(*line, *changed).status == 0
        splits = splits_of(compose("train", LINE))
        assert splits.database is not None
        state = torch.load(trained / "model.pt", weights_only=True)["state_dict"]

        def outputs(images: Any) -> torch.Tensor:
            x = ((images.float() / 255 - 0.9) / 0.2).flatten(1)
            for name in ("hidden1", "hidden2"):
                x = torch.relu(x @ state[f"{name}.weight"].T + state[f"{name}.bias"])
            return x @ state["head.weight"].T + state["head.bias"]

        packed = np.packbits((outputs(splits.database.images) >= 0).numpy(), axis=1)
        codes = {"packed": packed, "labels": splits.database.targets.numpy()}
        expected = precision(outputs(splits.test.images), splits.test.targets, codes)
        clean = row_of(only(tmp_path / "runs" / "attack"))["measurements"][0]
        assert clean["value"] == pytest.approx(float(np.mean(expected)), abs=1e-3)

    def test_images_may_be_kept(self, made: Made, trained: Path) -> None:
        run = attacked(made, trained, "attack=fgsm", "attack.save_images=3")
        saved = arrays(run / "images.npz")
        assert saved["clean/predicted"].shape == (3, 16)
        expected = by_hand(trained, torch.from_numpy(saved["exact 24/255"])).numpy()
        assert np.allclose(saved["exact 24/255/predicted"], expected, atol=1e-4)
        codes = arrays(trained / "codes.npz")
        for cell in ("clean", "rule 8/255", "exact 24/255"):
            signs = np.packbits(saved[f"{cell}/predicted"] >= 0, axis=1)
            for query, nearest in zip(signs, saved[f"{cell}/nearest"], strict=True):
                distances = np.unpackbits(query ^ codes["packed"], axis=1).sum(1)
                assert nearest.tolist() == codes["ids"][np.argsort(distances, kind="stable")[:10]].tolist()
        with Image.open(run / "images.png") as picture:
            assert picture.width > 500

    def test_a_transfer_is_from_the_surrogates_own_codes(self, made: Made, trained: Path) -> None:
        """Its images are those of the attack on the surrogate; their score is the victim's."""
        source = tuned(made, trained, "dpsh")
        keep = [*ATTACKS["mainstay"], "attack.save_images=40"]
        surrogate = ["attack.gradient=[surrogate]", f"attack.surrogates=[{trained}]"]
        transferred = attacked(made, source, *keep, *surrogate)
        alone = attacked(made, trained, *keep, "attack.gradient=[exact]")
        measured = row_of(transferred)["measurements"][1:]
        ours, theirs = arrays(transferred / "images.npz"), arrays(alone / "images.npz")
        for each in measured:
            assert each["gradient"] == "surrogate"
            assert each["source"].startswith("mlp-bp-s0@")
            images = ours[f"surrogate {each['source']} {each['eps']}"]
            assert np.array_equal(images, theirs[f"exact {each['eps']}"])
        exact = row_of(alone)["measurements"][1:]
        assert [each["value"] for each in measured] != [each["value"] for each in exact]


# Refusals


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["attack=pgd", "attack.loss=margin"],
            "attack.loss: margin is for task=classification, not for hashing",
        ),
        (["attack=apgd"], "attack: apgd supports classification, not task=hashing"),
        (
            ["attack=pgd", "attack.targeted=random"],
            "attack.targeted: task=hashing has untargeted attacks only",
        ),
        (
            ["attack=mainstay", "attack.targeted=random"],
            "attack.targeted: is for fgsm, mifgsm, pgd and finite_difference, not for mainstay",
        ),
        (["attack=hag", "attack.norm=L2"], "attack.norm: hag supports Linf only"),
    ],
)
def test_attacks_that_hashing_does_not_have_are_refused(
    overrides: list[str], said: str, trained: Path, ask: Ask, tmp_path: Path
) -> None:
    answer = ask("attack", f"init_from={trained}", *overrides, *HERE)
    assert answer.status == 2
    assert answer.errors == [f"sstune: {said}"]
    assert not list(tmp_path.glob("runs/attack/*/result.json"))


@pytest.mark.parametrize("name", ["mainstay", "hag", "hag_sign", "sdha"])
def test_its_own_are_refused_by_a_classifier(name: str, made: Made, ask: Ask) -> None:
    classifier = made("train", "dataset=digits", *NETWORK[3:], *HERE, "epochs=1")
    answer = ask("attack", f"init_from={classifier}", f"attack={name}", *HERE)
    assert answer.status == 2
    assert answer.errors == [f"sstune: attack: {name} supports hashing, not task=classification"]
    answer = ask("attack", f"init_from={classifier}", "attack=pgd", "attack.loss=hag", *HERE)
    assert answer.status == 2
    assert answer.errors == ["sstune: attack.loss: hag is for task=hashing, not for classification"]


@pytest.mark.parametrize("loss", ["dpsh", "hashnet", "dch", "hyp2"])
def test_a_loss_of_pairs_does_not_divide_a_batch(loss: str, ask: Ask) -> None:
    answer = ask("train", *LINE, f"task.loss={loss}", "accumulate=2")
    assert answer.status == 2
    said = "the loss of this hashing task compares the images of a batch, which cannot be divided"
    assert answer.errors == [f"sstune: accumulate: {said}"]


# Resumption

SHORT = [*LINE, "epochs=3", "dataset.crop_padding=1", "task.top_k=100"]  # 7 steps an epoch
STEPS = 7
RESUMED = {
    "dpsh": ["task.loss=dpsh", "rule=usf"],
    "dpsh, bf16": ["task.loss=dpsh", "precision=bf16"],
    "hyp2": ["task.loss=hyp2"],
    "hyp2, adam": ["task.loss=hyp2", "optimizer=adam", "optimizer.lr=0.001"],
    "hashnet": ["task.loss=hashnet", "rule=brsf"],
}

STATES = {"dpsh": ["bank"], "hyp2": ["proxies"], "hashnet": []}


def work(config: RunConfig, out: Path, stop: StopFlag | None = None) -> dict[str, Any]:
    run = Run(replace(config, out=str(out)), [], None)
    run.directory.mkdir(parents=True, exist_ok=True)
    return dict(fit_network(run, None, CPU, StopFlag() if stop is None else stop))


def left(run: Path) -> dict[str, Any]:
    """What training left, but for times."""
    model = torch.load(run / "model.pt", weights_only=True)
    codes = {name: value.tobytes() for name, value in arrays(run / "codes.npz").items() if name != "model"}
    history = [line.rpartition(",")[0] for line in (run / "history.csv").read_text().splitlines()]
    weights = {
        f"{part} {name}": value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
        for part, state in model.items()
        for name, value in state.items()
    }
    return {"weights": weights, "codes": codes, "history": history}


class TestInterrupted:
    @pytest.mark.parametrize("name", RESUMED)
    def test_resumed_training_is_bit_equal(self, name: str, tmp_path: Path) -> None:
        config = compose("train", [*SHORT, *RESUMED[name]])
        whole = work(config, tmp_path / "whole")
        for steps, at in ((3, (0, 3)), (STEPS, (1, 3)), (STEPS, (2, 3))):
            with pytest.raises(Stopped):
                work(config, tmp_path / "resumed", StopAfter(steps))
            (path,) = tmp_path.glob("resumed/*/*/checkpoint.pt")
            state = torch.load(path, weights_only=True)
            assert (state["progress"]["epoch"], state["progress"]["step"]) == at
            assert list(state["task"]) == STATES[name.partition(",")[0]]
            assert all(value.any() for value in state["task"].values())
        resumed = work(config, tmp_path / "resumed")
        assert resumed["measurements"] == whole["measurements"]
        (one,), (other,) = (tmp_path.glob(f"{folder}/*/*") for folder in ("whole", "resumed"))
        assert left(other) == left(one)
        assert len(left(one)["history"]) == 4

    def test_killed_in_mid_epoch_it_goes_on_with_its_bank(self, tmp_path: Path, made: Made) -> None:
        line = [*SHORT, *RESUMED["dpsh"]]
        whole = made("train", *line)
        run = tmp_path / "runs" / "train" / whole.name
        every = {"sstune.training.engine.SAVE_EVERY": 0.0}
        process = processes.start(["train", *line], tmp_path, tmp_path / "output", every)
        processes.until((run / "checkpoint.pt").exists, process)
        process.kill()
        assert processes.wait(process) == -signal.SIGKILL
        bank = torch.load(run / "checkpoint.pt", weights_only=True)["task"]["bank"]
        assert bank.any()
        assert processes.wait(processes.start(["train", *line], tmp_path, tmp_path / "output")) == 0
        assert "resuming in epoch" in (tmp_path / "output").read_text()
        assert left(run) == left(whole)
        assert row_of(run)["measurements"] == row_of(whole)["measurements"]


# The report


def test_report_shows_the_metric_and_its_values(
    made: Made, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    source = tuned(made, trained, "dpsh")
    runs = [source, attacked(made, source, *ATTACKS["mainstay"])]
    for run in runs:
        folder = tmp_path / "runs" / row_of(run)["command"] / run.name
        folder.mkdir(parents=True)
        (folder / "result.json").write_bytes((run / "result.json").read_bytes())
    answer = ask("report")
    assert answer.status == 0
    assert "mAP@all in %; n = 40" in answer.out
    assert "accuracy" not in answer.out
    (line,) = (line for line in answer.out.splitlines() if line.startswith("usf"))
    clean, *measured = row_of(runs[1])["measurements"]
    value = {(each["gradient"], each["eps"]): each["value"] for each in measured}
    expected = [clean["value"], *(value[gradient, eps] for eps in EPS for gradient in ("rule", "exact"))]
    assert [float(word) for word in line.split()[1:]] == pytest.approx([100 * v for v in expected], abs=0.051)
