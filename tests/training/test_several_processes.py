"""Two gloo processes, each with half of every batch, against one process with the whole."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import PATIENCE
from ranks import run_lines, together, train_in_float64

import sstune

RULES = {
    "bp": ["rule=bp"],
    "usf": ["rule=usf"],
    "brsf": ["rule=brsf"],
    "pfa": ["rule=pfa", "rule.start=random"],
    "frsf": ["rule=frsf", "adversary.attack=pgd2"],  # against an adversary
}
STEPS = 20
# 287 images: a last batch of 37, of which two processes cannot have equal shares
SMALL = ["dataset.test_fraction=0.8", "dataset.val_fraction=0.2", "threads=1", "device=cpu", "batch_size=50"]
MLP = [*SMALL, "backbone=mlp", "backbone.hidden=[64]", "dataset.flip=true", "epochs=4"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one and two processes made: float64 states of ResNet-20; runs of an MLP below one/ and two/."""
    folder = tmp_path_factory.mktemp("ranks")
    for ranks, name in ((1, "one"), (2, "two")):
        (folder / "port").write_text(str(free_port()))
        lines = [[*MLP, *rule, "ema=0.9", f"out={folder / name}"] for rule in RULES.values()]
        together(ranks, folder, _both, lines, folder)
    return folder


def _both(lines: list[list[str]], folder: Path) -> None:
    train_in_float64(RULES, STEPS, folder)
    run_lines(lines)


@pytest.mark.parametrize("rule", RULES)
class TestTwoProcesses:
    def test_train_a_network_with_batch_normalisation_as_one_does(self, rule: str, trained: Path) -> None:
        alone, first, second = (
            torch.load(trained / f"{rule}-{which}.pt", weights_only=True)
            for which in ("0-of-1", "0-of-2", "1-of-2")
        )
        assert alone["backbone.bn1.num_batches_tracked"] >= STEPS
        tensors = {name: value for name, value in alone.items() if isinstance(value, torch.Tensor)}
        for name, value in tensors.items():
            torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5, msg=name)
            assert torch.equal(first[name], second[name]), name

    def test_make_the_same_run_as_one(self, rule: str, trained: Path) -> None:
        (one,) = (trained / "one").glob(f"train/mlp-digits-{rule}-*")
        two = trained / "two" / "train" / one.name
        models = [torch.load(run / "model.pt", weights_only=True) for run in (one, two)]
        for part in ("state_dict", "feedback"):
            assert models[0][part].keys() == models[1][part].keys()
            for name, value in models[0][part].items():
                torch.testing.assert_close(models[1][part][name], value, rtol=0, atol=1e-5, msg=name)
        rows = [json.loads((run / "result.json").read_text()) for run in (one, two)]
        assert [row.pop("processes") for row in rows] == [1, 2]
        for key in ("identity", "measurements", "epoch", "datasets", "layers"):
            assert rows[0][key] == rows[1][key], key
        losses = [
            [float(line.split(",")[2]) for line in (run / "history.csv").read_text().splitlines()[1:]]
            for run in (one, two)
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert len(losses[0]) == 4


class TestTorchrun:
    """The real launcher: a run that goes on for as long as nobody stops it, on two processes."""

    def start(self, line: list[str], folder: Path, *options: str) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(sstune.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        return subprocess.Popen(
            [*launcher, "--nproc-per-node=2", *options, "-m", "sstune", *line],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def children(self, process: subprocess.Popen[str]) -> list[int]:
        """The launcher's worker processes."""
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, rest = status.read_text().rsplit(")", 1)
            except OSError:
                continue
            if int(rest.split()[1]) == process.pid:
                found.append(int(name.split()[0]))
        return sorted(found)

    def until(self, path: Path, process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + 2 * PATIENCE
        while not path.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.02)

    def test_a_killed_process_is_started_again_and_training_goes_on(self, tmp_path: Path) -> None:
        line = ["train", *MLP, "rule=usf", "epochs=60", "alignment=false"]
        process = self.start(line, tmp_path, "--max-restarts=1", "--monitor-interval=0.2")
        run = tmp_path / "runs" / "train"
        while not list(run.glob("*/checkpoint.pt")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        os.kill(self.children(process)[-1], signal.SIGKILL)
        output, _ = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0, output
        assert "resuming in epoch" in output
        together_row = json.loads(next(run.glob("*/result.json")).read_text())

        alone = tmp_path / "alone"
        run_lines([[*line[1:], f"out={alone}"]])
        expected = json.loads(next(alone.glob("train/*/result.json")).read_text())
        assert together_row["identity"] == expected["identity"]
        models = [next(out.glob("*/model.pt")) for out in (run, alone / "train")]
        states = [torch.load(model, weights_only=True)["state_dict"] for model in models]
        for name, value in states[1].items():
            torch.testing.assert_close(states[0][name], value, rtol=0, atol=1e-4, msg=name)

    def test_a_wrong_request_is_answered_once(self, tmp_path: Path) -> None:
        process = self.start(["train", "epochs=0"], tmp_path)
        output, _ = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode != 0
        assert output.count("sstune: epochs: 0 is out of range") == 1
        assert not (tmp_path / "runs").exists()
