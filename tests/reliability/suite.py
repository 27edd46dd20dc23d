"""Kills, full disks, damaged files and several sweepers, over every command; what they did, as a table.

    python tests/reliability/suite.py [--short] [--out FILE.csv] [--only WORDS] [--keep FOLDER]

Every trial is a real command on a real, small problem. It meets one fault; then the same line is run again,
and what is there in the end is compared, file by file, with what an undisturbed run leaves. Exit status 1:
something was lost, different, blocked or unclear (see ``trials.py``), which is then said line by line.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import children

if TYPE_CHECKING:
    from scenes import Scene
    from trials import Complaint, Trial

# What commands import while they work; imported once here, it costs their children nothing.
IMPORTED = [
    "torch._dynamo", "torch._inductor.cudagraph_trees", "torchattacks", "sklearn.datasets", "hydra", "pandas",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "matplotlib.pyplot",
    "PIL.PngImagePlugin", "sstune.commands.attack", "sstune.commands.train", "sstune.commands.report",
    "sstune.sweeps",
]  # fmt: skip


SHORT = ("train", "finetune", "attack", "audit", "sweep", "report", "sweep force")


def chosen(scenes: Mapping[str, Scene], short: bool) -> list[Trial]:
    """The trials; ``short``: a few of each kind."""
    from damage import source_damages, state_damages
    from selection import full_disks, kills, kills_at_moments, stops
    from sweepers import joblib_interruptions, sweepers

    found: list[Trial] = []
    for name, scene in scenes.items():
        if name == "sweep joblib":
            found += joblib_interruptions(scene)
        elif not short:
            found += [*kills(scene, 24), *kills_at_moments(scene, 6), *stops(scene, 4), *full_disks(scene)]
        elif name != "sweep force":
            found += [*kills(scene, 3)[1:2], *full_disks(scene, 3)[1:2]]
        if name in ("train", "finetune", "attack", "audit"):
            found += state_damages(scene)[:: 12 if short else 1]
        if name in ("finetune", "attack", "audit", "report"):
            found += source_damages(scene)[:: 11 if short else 1]
        if name in ("sweep", "sweep force"):
            found += sweepers(scene, 1)[:1] if short else sweepers(scene, 3)
    return found


def carried_out(trial: Trial, folder: Path) -> list[Complaint]:
    """What is amiss after a trial in the new ``folder``, which stays if anything is."""
    from trials import Complaint

    folder.mkdir()
    try:
        complaints = trial.run(folder)
    except Exception as error:  # the others go on
        complaints = [Complaint("blocked", f"{type(error).__name__}: {error}")]
    if not complaints:
        shutil.rmtree(folder)
    return complaints


def run(trials: Sequence[Trial], place: Path, processes: int) -> list[list[Complaint]]:
    """Carry out the trials, so many side by side; what is amiss is said at once."""
    found: list[list[Complaint]] = [[] for _ in trials]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        tasks = {pool.submit(carried_out, trial, place / f"{k}"): k for k, trial in enumerate(trials)}
        for done, task in enumerate(as_completed(tasks), start=1):
            if done % 100 == 0:
                print(f"{done} of {len(trials)} trials", flush=True)
            number, complaints = tasks[task], task.result()
            trial, found[number] = trials[number], complaints
            for kind, text in complaints:
                print(f"{kind}: {trial.command}, {trial.fault}, {trial} [{number}]: {text}", flush=True)
    return found


def table(trials: Sequence[Trial], complaints: Sequence[Sequence[Complaint]]) -> list[dict[str, object]]:
    """A line for each command and fault: how many were tried, and in how many of them something was amiss."""
    from trials import KINDS

    lines: dict[tuple[str, str], Counter[str]] = {}
    for trial, found in zip(trials, complaints, strict=True):
        line = lines.setdefault((trial.command, trial.fault), Counter())
        line.update(["tried", *{complaint.kind for complaint in found}])
    return [
        {"command": command, "fault": fault, **{name: line[name] for name in ("tried", *KINDS)}}
        for (command, fault), line in lines.items()
    ]


def page_table(lines: Sequence[Mapping[str, object]]) -> str:
    """The table in Markdown: a line for each fault, over all commands that met it, and one for all."""
    from trials import KINDS

    faults: dict[str, Counter[str]] = {}
    commands: dict[str, list[str]] = {}
    for line in lines:
        fault = str(line["fault"])
        commands.setdefault(fault, []).append(str(line["command"]))
        for total in (faults.setdefault(fault, Counter()), faults.setdefault("all", Counter())):
            total.update({name: int(str(line[name])) for name in ("tried", *KINDS)})
    faults["all"] = faults.pop("all")
    cells = [["fault", "commands", "tried", *KINDS], ["---"] * (3 + len(KINDS))]
    for fault, total in faults.items():
        figures = [str(total[name]) for name in ("tried", *KINDS)]
        cells.append([fault, ", ".join(commands.get(fault, [])), *figures])
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def main() -> int:
    """Parse the command line, carry out the trials, print, write, judge."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few trials of each kind, in a minute")
    parser.add_argument("--only", default="", help="only trials whose command, fault or place has this")
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--page", type=Path, help="Markdown page whose table gets the figures")
    parser.add_argument("--keep", type=Path, help="a new folder for the work; what failed stays there")
    parser.add_argument("--processes", type=int, default=2, help="trials side by side; default: %(default)s")
    asked = parser.parse_args()
    if asked.keep is None:
        with tempfile.TemporaryDirectory() as folder:
            return children.preloaded([*sys.argv, "--keep", folder], Path(folder))
    place = asked.keep.resolve()
    if children.LIBRARY not in os.environ:
        place.mkdir()
        return children.preloaded(sys.argv, place)
    for name in IMPORTED:
        import_module(name)
    return measure(asked, place)


def measure(asked: argparse.Namespace, place: Path) -> int:
    """What :func:`main` does once this process is the one that children are forked from."""
    import pandas as pd
    from scenes import prepared, scenes

    from sstune.runs import provenance, write_text

    began = time.monotonic()
    every = scenes(prepared(place / "prepared"))
    if asked.short:
        every = {name: scene for name, scene in every.items() if name in SHORT}
    for scene in every.values():
        scene.run_undisturbed(place / "undisturbed" / scene.name.replace(" ", "-"))
    trials = [
        trial
        for trial in chosen(every, asked.short)
        if asked.only in f"{trial.command}, {trial.fault}, {trial}"
    ]
    (place / "trials").mkdir()
    lines = table(trials, run(trials, place / "trials", asked.processes))
    frame = pd.DataFrame(lines)
    print(frame.to_string(index=False))
    print(f"{len(trials)} trials in {time.monotonic() - began:.0f} s")
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        git = provenance()["git"]
        noted = frame.assign(commit=git["commit"], dirty=git["dirty"])
        write_text(asked.out, noted.to_csv(index=False, lineterminator="\n"))
    if asked.page is not None:
        text = asked.page.read_text(encoding="utf-8")
        write_text(asked.page, re.sub(r"(?m)(^\|.*\n)+", page_table(lines), text, count=1))
    return int(frame.iloc[:, 3:].to_numpy().any())


if __name__ == "__main__":
    sys.exit(main())
