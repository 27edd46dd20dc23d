"""``sstune attack attack=audit`` from the command line to the row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outside import NEAREST_MEAN
from PIL import Image
from stopping import timeless

from sstune.packing import pack, unpack
from sstune.schema.audit import CHECKS

Ask = Callable[..., Any]
QUICK = [
    "attack=audit", "attack.n=60", "attack.eps=[16/255,48/255]", "audit.black_box_n=40", "audit.label_n=30",
    "audit.square_queries=50", "audit.label_queries=50", "audit.estimate_queries=3000",
    "threads=1", "device=cpu",
]  # fmt: skip
ENOUGH = ["attack.n=200", "audit.black_box_n=200", "audit.label_n=200"]  # samples to find 5 points
NEAREST = [*QUICK, "model.factory=audited_nets:nearest"]  # quicker than any network that must be trained
CENTROIDS = f"""{NEAREST_MEAN}

class Noise(nn.Module):
    def forward(self, images):
        return images + 0.05 * torch.randn_like(images)

def noisy():
    return nn.Sequential(Noise(), *nearest()).eval()

def halves():
    linear, columns = nn.Linear(64, 2, bias=False), (torch.arange(64) % 8 < 4).float()
    linear.weight.data = torch.stack([columns, 1 - columns])
    return nn.Sequential(nn.Flatten(), linear).eval()
"""


def row_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("runs/attack/audit-*/result.json")
    row: dict[str, Any] = json.loads(path.read_text())
    return row


def check(row: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in row["audit"]["checks"] if one["id"] == name)
    return found


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audited_nets.py").write_text(CENTROIDS)


class TestOfARun:
    def test_the_row_holds_checks_verdict_and_every_attack(
        self, ask: Ask, imports: None, tmp_path: Path
    ) -> None:
        line = [*NEAREST, "rule=fa"]
        answer = ask("attack", *line, "audit.skip=[D4,D8]")
        assert answer.status == 0
        row = row_of(tmp_path)
        found = row["audit"]
        assert found["verdict"] == "MASKED"
        assert "D1" in found["because"]
        assert [check["id"] for check in found["checks"]] == list(CHECKS)
        assert found["not_run"] == {"D4": "skipped by audit.skip", "D8": "skipped by audit.skip"}
        printed = [text.split()[0] for text in answer.out.splitlines() if text.startswith("  D")]
        assert printed == [check["id"] for check in found["checks"]]

        clean, *attacked = row["measurements"]
        assert (clean["attack"], clean["n"]) == (None, 60)
        usual, worst = attacked[:-2], attacked[-2:]
        assert {(entry["attack"], entry["gradient"], entry["eps"]) for entry in usual} == {
            *(("pgd", gradient, eps) for gradient in ("rule", "exact") for eps in ("16/255", "48/255")),
            *(("fgsm", "rule", eps) for eps in ("16/255", "48/255")),
        }
        assert [(entry["attack"], entry["eps"]) for entry in worst] == [
            ("audit", "16/255"),
            ("audit", "48/255"),
        ]
        right = unpack(clean["outcomes"], 60)
        everything = pack(np.ones(60))
        for cell in [*usual, *found["cells"]]:
            outcomes = unpack(cell["outcomes"], cell["n"])
            assert outcomes.sum() == cell["correct"]
            on = unpack(cell.get("made_on", everything), 60)
            assert on.sum() == cell["n"]
            among = unpack(cell.get("among", everything), 60)
            assert among.sum() <= {"noise": 40, "square": 40, "rays": 30}.get(cell["attack"], 60)
            assert not (on & ~among).any()
            assert not (outcomes & ~right[on]).any()
            if cell["eps"] == "16/255":
                smaller = unpack(worst[0]["outcomes"], 60)
                assert not (smaller[on] & ~outcomes).any()

    def test_a_transfer_from_another_run(
        self, ask: Ask, trained: Path, finetuned: Path, tmp_path: Path
    ) -> None:
        skip = "audit.skip=[D3,D4,D5,D6,D7,D9,D10,D13,D14,D16]"
        answer = ask("attack", *QUICK, f"init_from={trained}", f"audit.surrogate={finetuned}", skip)
        assert answer.status == 0
        row = row_of(tmp_path)
        assert check(row, "D8")["n"] == 60
        sources = {cell["source"].split("@")[0] for cell in row["audit"]["cells"] if cell.get("source")}
        assert sources == {"resnet20-brsf-s0", "smoothed copy"}

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("audit.skip=[D99]", "audit.skip: unknown check 'D99'"),
            ("audit.surrogate=nowhere", "audit.surrogate: nowhere does not exist"),
            ("audit.black_box_n=0", "audit.black_box_n: "),
            ("attack.gradient=[exact]", "attack.gradient: the audit chooses its attacks itself"),
            ("attack.cascade=true", "attack.cascade: the audit chooses its attacks itself"),
            ("attack.norm=L2", "attack.norm: audit supports Linf only"),
        ],
    )
    def test_what_it_does_not_heed_is_refused(
        self, ask: Ask, imports: None, override: str, said: str
    ) -> None:
        answer = ask("attack", *NEAREST, override)
        assert answer.status == 2
        (line,) = answer.errors
        assert line.startswith(f"sstune: {said}")


class TestStrict:
    """With and without it is the same run."""

    SKIP = "audit.skip=[D3,D4,D5,D6,D7,D8,D9,D10,D11,D13,D14,D16]"

    def test_masked_is_status_1_when_found_and_whenever_asked_again(
        self, ask: Ask, imports: None, tmp_path: Path
    ) -> None:
        line = ["attack", *NEAREST, *ENOUGH, "rule=fa", self.SKIP]
        for _ in range(2):
            answer = ask(*line, "audit.strict=true")
            assert answer.status == 1
            assert answer.errors == [
                f"sstune: {answer.out.splitlines()[0].removesuffix(': done already')}: "
                "MASKED (D1), but audit.strict requires NOT MASKED"
            ]
        assert answer.out.splitlines()[0].endswith("done already")
        assert ask(*line).status == 0
        row_of(tmp_path)  # of the one run

    def test_inconclusive_is_not_good_enough_either(self, ask: Ask, imports: None) -> None:
        line = ["attack", *NEAREST, self.SKIP.replace("D8,", "")]
        answer = ask(*line, "audit.strict=true")
        assert answer.status == 1
        assert "INCONCLUSIVE (D8)" in answer.errors[0]

    def test_in_a_sweep_each_cell_is_asked_done_or_not(self, ask: Ask, imports: None) -> None:
        line = ["attack", "-m", *NEAREST, *ENOUGH, "rule=sham,fa", self.SKIP]
        for _ in range(2):
            answer = ask(*line, "audit.strict=true")
            assert answer.status == 1
            (complaint,) = answer.errors
            assert "digits-fa" in complaint
        assert ask("attack", *NEAREST, *ENOUGH, "rule=sham", self.SKIP, "audit.strict=true").status == 0


class TestOfAnImport:
    def test_without_any_rule_of_ours(self, ask: Ask, imports: None, tmp_path: Path) -> None:
        answer = ask("attack", *NEAREST, *ENOUGH, "audit.strict=true")
        assert answer.errors == []
        assert answer.status == 0
        row = row_of(tmp_path)
        found = row["audit"]
        assert (found["verdict"], found["because"]) == ("NOT MASKED", ["D16", "D4", "D5", "D7", "D8", "D13"])
        pgd = [
            {key: value for key, value in entry.items() if key != "gradient"}
            for gradient in ("rule", "exact")
            for entry in row["measurements"]
            if (entry["attack"], entry["gradient"]) == ("pgd", gradient)
        ]
        assert len(pgd) == 4
        assert pgd[:2] == pgd[2:]  # its one gradient is both
        assert check(row, "D1")["text"] == "no feedback: the network's gradient is the exact one"

    def test_with_a_rule_of_ours(self, ask: Ask, imports: None, tmp_path: Path) -> None:
        line = [*NEAREST, "rule=fa", "audit.skip=[D4,D5,D7,D8,D13,D16]"]
        assert ask("attack", *line).status == 0
        found = row_of(tmp_path)["audit"]
        assert found["checks"][0]["status"] == "ok"
        assert (found["verdict"], found["because"]) == ("MASKED", ["D1"])
        (page,) = tmp_path.glob("runs/attack/*/audit.html")
        first = page.read_bytes()
        page.unlink()  # as if a kill had come before it was written
        assert ask("attack", *line).status == 0
        assert page.read_bytes() == first
        (result,) = tmp_path.glob("runs/attack/*/result.json")
        for age, kept in ((1, "stale"), (-1, first.decode())):  # seconds that the page is newer than the row
            page.write_text("stale")
            os.utime(page, (result.stat().st_mtime + age,) * 2)
            assert ask("attack", *line).status == 0
            assert page.read_text() == kept

    def test_what_a_finished_one_says_needs_neither_torch_nor_matplotlib(self) -> None:
        program = (
            "import sys, sstune.commands.verdict; print({'torch', 'pandas', 'matplotlib'} & {*sys.modules})"
        )
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert found.stdout == "set()\n"

    def test_a_random_network_is_audited_alike_each_time(
        self, ask: Ask, imports: None, tmp_path: Path
    ) -> None:
        line = ["attack", *QUICK, "model.factory=audited_nets:noisy", "audit.skip=[D4,D7,D8,D13,D16]"]
        rows = []
        for _ in range(2):
            assert ask(*line, "force=true").status == 0
            rows.append(row_of(tmp_path))
            for path in tmp_path.glob("runs/attack/*/outcomes.npz"):
                path.unlink()
        assert timeless(rows[0]["audit"]) == timeless(rows[1]["audit"])
        assert check(rows[0], "D11")["status"] == "error"
        assert (rows[0]["audit"]["verdict"], rows[0]["audit"]["because"]) == ("INCONCLUSIVE", ["D11"])

    def test_of_two_classes_and_fewer_samples_than_black_box_n(
        self, ask: Ask, imports: None, tmp_path: Path
    ) -> None:
        columns = 255 * (np.arange(8) < 4).astype(np.uint8)
        for split, n in {"train": 10, "test": 100}.items():
            for name, row in {"left": columns, "right": 255 - columns}.items():
                folder = tmp_path / "tree" / split / name
                folder.mkdir(parents=True)
                for number in range(n):
                    Image.fromarray(np.tile(row, (8, 1))).convert("RGB").save(folder / f"{number}.png")
        (tmp_path / "grey.py").write_text(
            "from torch import nn\nimport audited_nets\n"
            "class Grey(nn.Module):\n    def forward(self, images):\n        return images.mean(1)\n"
            "def halves():\n    return nn.Sequential(Grey(), *audited_nets.halves()).eval()\n"
        )
        data = ["dataset=folder", "dataset.root=tree", "dataset.label=halves", "dataset.mean=[0.5,0.5,0.5]",
                "dataset.std=[0.5,0.5,0.5]", "dataset.cache=cache", "dataset.val_fraction=0.2"]  # fmt: skip
        answer = ask("attack", *QUICK, *ENOUGH, "audit.black_box_n=300", *data, "model.factory=grey:halves")
        assert answer.errors == []
        row = row_of(tmp_path)
        assert row["n_classes"] == 2
        assert row["audit"]["verdict"] == "NOT MASKED"
        assert check(row, "D7")["n"] == 200
        assert check(row, "D15")["figure"] == 100
