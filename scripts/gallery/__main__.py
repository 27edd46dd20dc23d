"""Measure how much the networks of the gallery hide.

    sstune train out=runs/gallery dataset=digits backbone=resnet20 epochs=12       # CHECKPOINT
    sstune train out=runs/gallery dataset=digits backbone=resnet20 epochs=10 \\
        adversary.attack=pgd7 adversary.eps=32/255                                 # ADVERSARIAL
    sstune train out=runs/gallery dataset=digits backbone=mlp                      # MLP
    sstune train out=runs/gallery dataset=digits backbone=mlp 'backbone.hidden=[]' # LINEAR
    CHECKPOINT=RUN_DIR ADVERSARIAL=RUN_DIR MLP=RUN_DIR LINEAR=RUN_DIR \\
        python -m scripts.gallery dataset=digits threads=1 'attack.eps=[8/255,16/255,32/255,64/255]'
    CHECKPOINT=resnet20-12fca82f.th python -m scripts.gallery experiment=audit_cifar10_jpeg \\
        dataset.root=cifar10.tar.xz --only decoy,median

Further words are settings of ``sstune attack``; ``attack.n=200`` unless given. A network whose rows are in
the table is skipped, so that the same command goes on where it was stopped; so is one whose run is not given.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from scripts.gallery import GALLERY
from scripts.gallery.table import append, read
from scripts.gallery.truth import measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="settings, such as dataset=digits")
    parser.add_argument("--only", default="", help="names of entries, separated by commas")
    parser.add_argument("--specs", action="store_true", help="only print all model.factory, with commas")
    parser.add_argument("--restarts", type=int, default=1, help="starts of each part of the adaptive attack")
    parser.add_argument("--out", type=Path, default=Path("results/gallery/truth.csv"))
    asked = parser.parse_args()
    if asked.specs:
        print(",".join(entry.spec for entry in GALLERY.values() if entry.base in os.environ))
        return
    for name in asked.only.split(",") if asked.only else GALLERY:
        entry = GALLERY[name]
        if unset := sorted({"CHECKPOINT", entry.base} - {*os.environ}):
            print(f"{name}: skipped, ${unset[0]} is not set", flush=True)
            continue
        rows = measured(entry, ["attack.n=200", *asked.overrides], asked.restarts, read(asked.out))
        if rows:
            append(asked.out, rows)
        for row in rows:
            print(f"  {row.eps}: own {row.own}, adaptive {row.adaptive}, gap {row.gap} ({row.seconds} s)")


if __name__ == "__main__":
    main()
