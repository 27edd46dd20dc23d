"""What an attack leaves behind: outcomes.npz, measurements, and its state when it is stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from stopping import StopAfter

from sstune import datasets
from sstune.attacks import Victim
from sstune.cli import main
from sstune.commands.attack import measure
from sstune.commands.lineage import open_source
from sstune.commands.outcomes import Outcomes, summary
from sstune.composition import compose
from sstune.interrupt import StopFlag, Stopped
from sstune.packing import unpack
from sstune.runs import Run
from sstune.schema import ClassificationConfig
from sstune.tasks import Score
from sstune.tasks.classification import Classification

Arrays = dict[str, npt.NDArray[Any]]
Attack = Callable[..., Path]
CPU = torch.device("cpu")
EPS = ("8/255", "24/255")  # the digits have 17 grey levels, 16/255 apart
CELLS = [f"{gradient} {eps}" for gradient in ("rule", "exact") for eps in EPS]
FIELDS = [
    "right",
    "broken",
    "achieved",
    "predictions",
    "steps_to_success",
    "zero_gradients",
    "entered",
    "images",
    "stage",
    "done",
]
LIMITS = ["attack.n=100", f"attack.eps=[{','.join(EPS)}]", "threads=1", "device=cpu"]
PGD = ["attack=pgd", "attack.steps=3", *LIMITS]


def row_of(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def outcomes(run: Path) -> Arrays:
    """Everything but the time taken and whose it is."""
    with np.load(run / "outcomes.npz") as file:
        return {name: file[name] for name in file if not name.endswith(("seconds", "identity"))}


def saved(run: Path) -> Arrays:
    """Finished cells, and the one in progress."""
    found: Arrays = {}
    for name in ("cell.npz", "outcomes.npz"):
        if (run / name).exists():
            with np.load(run / name) as file:
                found |= dict(file)
    return found


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def victim_of(samples: torch.Tensor, clean: torch.Tensor) -> Victim:
    """Of the class 0, where ``clean``."""
    n = len(clean)
    split = datasets.Split(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))
    task, predictions = Classification(ClassificationConfig("classification"), 2), 1 - clean.long()
    return Victim(torch.nn.Identity(), task, split, samples, predictions, Score.count(clean), CPU)


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Attack:
    """``attack(source, *overrides)``: directory of the finished attack, each line made once."""
    made: dict[tuple[Any, ...], Path] = {}

    def attack(*line: Any) -> Path:
        if line not in made:
            out = tmp_path_factory.mktemp("attack")
            source, *overrides = line
            assert main(["attack", f"init_from={source}", f"out={out}", *overrides]) == 0
            (made[line],) = (out / "attack").iterdir()
        return made[line]

    return attack


class TestFile:
    def test_holds_an_answer_per_sample_and_cell_and_agrees_with_the_row(
        self, attack: Attack, finetuned: Path
    ) -> None:
        run = attack(finetuned, *PGD)
        row, found = row_of(run), outcomes(run)
        assert set(found) == {"samples", "clean", *(f"{cell}/{field}" for cell in CELLS for field in FIELDS)}
        assert list(found["samples"]) == sorted(set(found["samples"]))
        clean, *measured = row["measurements"]
        assert {key: clean[key] for key in ("attack", "gradient", "eps", "n")} == {
            "attack": None, "gradient": None, "eps": None, "n": 100,
        }  # fmt: skip
        assert np.array_equal(unpack(clean["outcomes"], 100), found["clean"])
        assert [f"{entry['gradient']} {entry['eps']}" for entry in measured] == CELLS
        for cell, entry in zip(CELLS, measured, strict=True):
            right, effort = found[f"{cell}/right"], found[f"{cell}/steps_to_success"]
            assert (entry["n"], entry["split"], entry["attack"], entry["source"]) == (100, "test", "pgd", "")
            assert entry["correct"] == int(right.sum())
            assert np.array_equal(unpack(entry["outcomes"], 100), right)
            assert not (right & ~found["clean"]).any()  # what was wrong before is not counted as robust
            assert np.array_equal(found[f"{cell}/broken"], ~right)
            assert np.array_equal(effort >= 0, found["clean"] & ~right)
            assert sum(count for _, count in entry["found"]) == int((effort >= 0).sum())
            assert dict(entry["found"]) == {
                int(step): int((effort == step).sum()) for step in set(effort[effort >= 0])
            }
            assert entry["seconds"] > 0
        assert row["seconds"] == pytest.approx(sum(entry["seconds"] for entry in measured))

    def test_names_the_samples_by_the_digest_that_runs_on_the_same_share(
        self, attack: Attack, finetuned: Path, trained: Path
    ) -> None:
        one, other, fewer = (
            row_of(attack(source, *PGD, *more))["datasets"]["test"]
            for source, more in ((finetuned, ()), (trained, ("rule=usf",)), (finetuned, ("attack.n=50",)))
        )
        assert one["attacked"] == other["attacked"] != fewer["attacked"]
        assert one["digest"] == fewer["digest"] != one["attacked"]

    @pytest.mark.parametrize("method", ["fgsm", "pgd", "mifgsm"])
    def test_the_two_gradients_of_bp_agree_to_the_sample(
        self, attack: Attack, trained: Path, method: str
    ) -> None:
        found = outcomes(attack(trained, f"attack={method}", *LIMITS))
        for eps in EPS:
            for field in FIELDS:
                assert np.array_equal(found[f"rule {eps}/{field}"], found[f"exact {eps}/{field}"])
        left = [int(found[f"rule {eps}/right"].sum()) for eps in EPS]
        assert found["clean"].sum() > left[0] > left[1]

    def test_does_not_depend_on_the_batch_size_or_on_the_order_of_eps(
        self, attack: Attack, finetuned: Path
    ) -> None:
        first = attack(finetuned, *PGD)
        other = attack(finetuned, *PGD, "attack.batch_size=17")
        assert first.name == other.name
        assert same(outcomes(first), outcomes(other))
        reverse = attack(finetuned, *PGD, "attack.eps=[24/255,8/255]", "attack.gradient=[exact,rule]")
        assert same(outcomes(first), outcomes(reverse))

    def test_n_limits_the_samples_to_a_part_of_what_more_would_be(
        self, attack: Attack, finetuned: Path
    ) -> None:
        few, more = (outcomes(attack(finetuned, *PGD, *n)) for n in (("attack.n=50",), ()))
        where = np.isin(more["samples"], few["samples"])
        assert where.sum() == len(few["samples"]) == 50
        for cell in CELLS:
            for field in ("right", "broken", "steps_to_success"):
                assert np.array_equal(few[f"{cell}/{field}"], more[f"{cell}/{field}"][where])

    def test_another_seed_attacks_the_same_samples(self, attack: Attack, trained: Path) -> None:
        one, two = (outcomes(attack(trained, *PGD, f"seed={seed}")) for seed in (0, 1))
        assert np.array_equal(one["samples"], two["samples"])
        assert np.array_equal(one["clean"], two["clean"])

    def test_a_cascade_is_never_above_the_plain_attack(self, attack: Attack, finetuned: Path) -> None:
        """Asked for from large to small, it goes from small to large."""
        plain = outcomes(attack(finetuned, *PGD))
        line = [*PGD, "attack.eps=[24/255,8/255]", "attack.cascade=true"]
        run = attack(finetuned, *line)
        found = outcomes(run)
        assert [entry["eps"] for entry in row_of(run)["measurements"]] == [None, *EPS, *EPS]
        for gradient in ("rule", "exact"):
            small, large = (f"{gradient} {eps}/right" for eps in EPS)
            assert np.array_equal(found[small], plain[small])
            assert np.array_equal(found[large], plain[large] & plain[small])

    def test_targets_eight_bit_and_draws_reach_the_attack(self, attack: Attack, finetuned: Path) -> None:
        plain, names = outcomes(attack(finetuned, *PGD)), {attack(finetuned, *PGD).name}
        for change in (
            "attack.targeted=least_likely",
            "attack.eight_bit=true",
            "attack.redraw=forward",
            "attack.norm=L2",
            "attack.loss=margin",
        ):
            run = attack(finetuned, *PGD, change)
            names.add(run.name)
            assert not same(outcomes(run), plain), change
        assert len(names) == 6

    def test_a_targeted_attack_says_how_often_it_reached_its_target(
        self, attack: Attack, finetuned: Path
    ) -> None:
        run = attack(finetuned, *PGD, "attack.targeted=runner_up")
        found, measured = outcomes(run), row_of(run)["measurements"]
        assert "reached" not in measured[0]
        reached = [entry["reached"] for entry in measured[1:]]
        assert reached == [int((found[f"{cell}/broken"] & found["clean"]).sum()) for cell in CELLS]
        assert max(reached) > 0
        plain = row_of(attack(finetuned, *PGD))["measurements"]
        assert not any("reached" in entry for entry in plain)


class TestDraws:
    """Of feedback under attack, where neither the run nor the attack freezes it."""

    def test_follow_the_rule_where_the_attack_does_not_say(self, attack: Attack, trained: Path) -> None:
        line = [*PGD, "rule=brsf", "attack.gradient=[rule]"]
        found = {
            (rule, redraw): outcomes(attack(trained, *line, f"rule.redraw={rule}", f"attack.redraw={redraw}"))
            for rule, redraw in [
                ("step", "null"), ("step", "frozen"), ("forward", "null"), ("forward", "forward"),
            ]
        }  # fmt: skip
        assert same(found["step", "null"], found["step", "frozen"])
        assert same(found["forward", "null"], found["forward", "forward"])
        assert not same(found["step", "null"], found["forward", "null"])

    def test_a_frozen_draw_does_not_depend_on_how_often_the_network_was_asked(
        self, attack: Attack, trained: Path
    ) -> None:
        """A network that draws in every forward has drawn by the time that it is attacked."""
        line = [*PGD, "rule=brsf", "rule.redraw=forward", "attack.redraw=frozen", "attack.gradient=[rule]"]
        few, more = (outcomes(attack(trained, *line, f"attack.n={n}")) for n in (50, 400))
        where = np.isin(more["samples"], few["samples"])
        for eps in EPS:
            assert np.array_equal(few[f"rule {eps}/right"], more[f"rule {eps}/right"][where])


class TestStopped:
    LINE = (*PGD, "attack.restarts=2", "attack.eps=[24/255]")

    @pytest.fixture
    def run(self, finetuned: Path, tmp_path: Path) -> tuple[Run, Callable[[StopFlag], Any]]:
        """An attack in batches of 50, and what does its work."""
        source = open_source(finetuned)
        assert source.config is not None
        config = compose("attack", [*self.LINE, "attack.batch_size=50", f"out={tmp_path}"])
        inherited = {name: getattr(source.config, name) for name in ("dataset", "rule", "seed")}
        run = Run(replace(config, **inherited), source.lineage, datasets.fingerprint(config.dataset))
        run.directory.mkdir(parents=True)
        return run, lambda stop: measure(run, source, CPU, stop)

    def test_after_any_batch_it_goes_on_with_the_next_to_the_same_end(
        self, run: Any, attack: Attack, finetuned: Path
    ) -> None:
        stopped, work = run
        whole = attack(finetuned, *self.LINE)
        progress: list[tuple[int, ...]] = []
        row = None
        while row is None:
            with suppress(Stopped):
                row = work(StopAfter(1))
            found = saved(stopped.directory)
            cells = [cell for cell in CELLS if f"{cell}/stage" in found]
            progress.append((len(cells), *(int(found[f"{cells[-1]}/{key}"]) for key in ("stage", "done"))))
            assert len(progress) < 20
        assert progress == sorted(progress)
        assert len(progress) == 2 * 2 * 2  # gradients, restarts, batches
        assert same(outcomes(stopped.directory), outcomes(whole))
        without_seconds = [
            [{key: value for key, value in entry.items() if key != "seconds"} for entry in measured]
            for measured in (row["measurements"], row_of(whole)["measurements"])
        ]
        assert without_seconds[0] == without_seconds[1]

    @pytest.mark.parametrize("finished", [False, True])
    def test_other_samples_or_judgements_or_another_run_are_not_gone_on_from(
        self, finished: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        samples, clean = torch.tensor([3, 5, 8]), torch.tensor([True, True, False])
        victim = victim_of(samples, clean)
        left = Outcomes(tmp_path, "a", victim)
        if finished:
            left.finish("rule 8/255", victim.begin())
        else:
            left.save("rule 8/255", victim.begin(), StopFlag())
        (path,) = tmp_path.iterdir()
        content = path.read_bytes()
        assert Outcomes(tmp_path, "a", victim).get("rule 8/255") is not None
        assert Outcomes(tmp_path, "a", victim).get("exact 8/255") is None
        others = ("a", victim_of(samples + 1, clean)), ("a", victim_of(samples, ~clean)), ("b", victim)
        for other, name in zip(others, ("samples", "clean", "identity"), strict=True):
            path.write_bytes(content)
            assert Outcomes(tmp_path, *other).cells == {}
            assert f"another {name} than this run's" in capsys.readouterr().err
        assert set(os.listdir(tmp_path)) == {f"damaged{n}.{path.name}" for n in ("", ".2", ".3")}

    @pytest.mark.parametrize(
        "field", ["right", "achieved", "predictions", "steps_to_success", "stage", "images", "clean"]
    )
    @pytest.mark.parametrize("change", ["missing", "type", "size"])
    def test_a_cell_that_is_not_whole_is_not_gone_on_from(
        self, tmp_path: Path, field: str, change: str
    ) -> None:
        if (field, change) in [("images", "size"), ("right", "type"), ("right", "size")]:
            pytest.skip("none are kept, or some; right is for other programs")
        path, victim = tmp_path / "outcomes.npz", victim_of(torch.arange(3), torch.ones(3, dtype=torch.bool))
        Outcomes(tmp_path, "a", victim).finish("rule 8/255", victim.begin())
        with np.load(path) as file:
            arrays = dict(file)
        name = field if field == "clean" else f"rule 8/255/{field}"
        if change == "missing":
            del arrays[name]
        else:
            arrays[name] = arrays[name].astype("U9") if change == "type" else np.append(arrays[name], True)
        np.savez_compressed(path, **arrays)
        assert Outcomes(tmp_path, "a", victim).cells == {}
        assert os.listdir(tmp_path) == ["damaged.outcomes.npz"]

    def test_outcomes_are_used_again_when_only_the_row_is_gone(self, attack: Attack, trained: Path) -> None:
        run = attack(trained, *PGD)
        row, stamp = row_of(run), (run / "outcomes.npz").stat().st_mtime_ns
        (run / "result.json").unlink()
        assert main(["attack", f"init_from={trained}", f"out={run.parents[1]}", *PGD]) == 0
        assert (run / "outcomes.npz").stat().st_mtime_ns == stamp
        assert row_of(run) == row

    def test_a_file_of_an_earlier_version_is_gone_on_from(self, tmp_path: Path) -> None:
        """It said neither whose it was nor what the network says of a sample."""
        clean = torch.tensor([True, True, True, False])
        victim = victim_of(torch.arange(4), clean)
        arrays = dict(victim.begin().arrays())
        del arrays["achieved"], arrays["predictions"]
        for name, earlier in (("stage", "part"), ("steps_to_success", "effort")):
            arrays[earlier] = arrays.pop(name)
        # of the first three, one is still right, one is wrong, one has reached its target
        arrays |= {"right": np.array([1, 0, 0, 0], bool), "broken": np.array([0, 0, 1, 1], bool)}
        cell: Arrays = {f"rule 8/255/{field}": value for field, value in arrays.items()}
        np.savez_compressed(
            tmp_path / "outcomes.npz", samples=victim.samples.numpy(), clean=clean.numpy(), **cell
        )
        found = Outcomes(tmp_path, "a", victim).cells["rule 8/255"]
        assert found.achieved.tolist() == [0, 0.5, 1, 1]
        assert torch.equal(found.robust, torch.from_numpy(arrays["right"]))
        assert torch.equal(found.success, torch.from_numpy(arrays["broken"]))
        assert victim.score_of(found).correct == 1


class TestSummary:
    def test_counts_efforts_where_they_are_known(self) -> None:
        victim = victim_of(torch.arange(7), torch.tensor([True] * 6 + [False]))
        outcome = victim.begin()
        assert summary(victim, outcome)["found"] == []
        outcome.update(torch.arange(4), torch.ones(4), torch.full((4,), -1), torch.tensor([3, 0, 3, -1]))
        found = summary(victim, outcome)
        assert found["correct"] == 2
        assert found["found"] == [[0, 1], [3, 2]]
        assert unpack(found["outcomes"], 7).tolist() == [False] * 4 + [True] * 2 + [False]
        assert json.loads(json.dumps(found)) == found
