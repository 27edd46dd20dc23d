"""Which part of a run's configuration the runs that start from it inherit. Imports no torch."""

# Sections and keys that a command takes from the run it starts from, unless the command line sets them.
INHERITED: dict[str, tuple[str, ...]] = {
    "train": (),
    "finetune": ("backbone", "dataset", "task", "adversary"),
    "attack": ("backbone", "dataset", "task", "adversary", "rule", "seed"),
}
# Without init_from, finetune starts from a training run that has these in common with it.
SHARED_WITH_DEFAULT_PARENT = (*INHERITED["finetune"], "seed", "device", "threads", "out")
