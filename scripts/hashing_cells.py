"""Print the command lines of ``make reproduce-hashing``, one for each run: fine-tunings, then attacks.

    python scripts/hashing_cells.py finetune
    python scripts/hashing_cells.py attack

csq is measured in full, with three seeds and three eps; the other losses with one seed at 4/255. Under bp and
sham the rule's gradient is the exact one, so that it is not attacked twice.
"""

from __future__ import annotations

import argparse
import itertools

OUT = "runs/hashing-cifar10-jpeg"
LOSSES = ("csq", "hashnet", "dpsh", "dch", "hyp2")
SEEDS = {"csq": (0, 1, 2)}
EPS = {"csq": "[2/255,4/255,8/255]"}
EXACT = ("bp", "sham")
APPROXIMATE = ("usf", "frsf", "brsf")
SCALES = ("weight_rms", "xavier")
# Steps at which exact attacks reach their bound; published numbers are 100, 2000, and 1500.
ATTACKS = (
    "attack=noise attack.attempts=1",
    "attack=mainstay attack.steps=30",
    "attack=hag attack.steps=50",
    "attack=hag_sign attack.steps=50",
    "attack=sdha attack.steps=50",
    "attack=pgd attack.steps=30",
)
# Whether the rules' own gradients have done what they can: more steps, at 4/255.
LONGER = (
    "attack=mainstay attack.steps=10,100,200",
    "attack=hag_sign attack.steps=20,100,200",
)
# HAG with the published number of steps, where its steps are shortest, on fewer queries.
PUBLISHED = "attack=hag attack.steps=2000 attack.n=64"


def groups() -> list[tuple[str, int]]:
    """Losses and seeds in the order in which they are measured: the first seed of all losses, then others."""
    all_ = [(loss, seed) for loss in LOSSES for seed in SEEDS.get(loss, (0,))]
    return sorted(all_, key=lambda group: group[1])


def finetunings(loss: str, seed: int) -> list[str]:
    """The fine-tunings of one loss and seed."""
    rules = [f"rule={rule}" for rule in EXACT]
    rules += [f"rule={rule} rule.scale={scale}" for rule, scale in itertools.product(APPROXIMATE, SCALES)]
    return [f"out={OUT}/{loss} task.loss={loss} seed={seed} {rule}" for rule in rules]


def attacks(loss: str, seed: int) -> list[str]:
    """The attacks on the networks of one loss and seed; ``-m`` takes all networks that a pattern matches."""
    where = f"out={OUT}/{loss} attack.eps={EPS.get(loss, '[4/255]')}"
    lines = []
    for attack in ATTACKS:
        both = [] if "noise" in attack else ["attack.gradient=[exact]"]
        for rules, gradient in ((EXACT, both), (APPROXIMATE, [])):
            for rule in rules:
                source = f"init_from={OUT}/{loss}/finetune/*-{rule}-*s{seed}-*"
                lines.append(" ".join([where, attack, source, *gradient]))
    return lines


def longer() -> list[str]:
    """Attacks through the rules' own gradients with other numbers of steps, on csq and the first seed."""
    where = f"out={OUT}/csq attack.eps=[4/255] attack.gradient=[rule]"
    nets = [("*", attack) for attack in LONGER] + [("xavier", PUBLISHED)]
    return [
        f"{where} {attack} init_from={OUT}/csq/finetune/*-{rule}-{scale}-s0-*"
        for scale, attack in nets
        for rule in APPROXIMATE[:2]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["finetune", "attack"])
    arguments = parser.parse_args()
    made = finetunings if arguments.command == "finetune" else attacks
    lines = [line for group in groups() for line in made(*group)]
    if arguments.command == "attack":
        lines += longer()
    print("\n".join(f"experiment=hashing_cifar10_jpeg {line}" for line in lines))


if __name__ == "__main__":
    main()
