"""Settings that a run inherits from the run it starts from. Imports no torch."""

# Inherited sections and keys by command; the command line overrides them.
INHERITED: dict[str, tuple[str, ...]] = {
    "train": (),
    "finetune": ("backbone", "dataset", "split", "task", "adversary"),
    "attack": ("backbone", "dataset", "split", "task", "adversary", "rule", "seed"),
}
# Without init_from, finetune starts from the training run that shares these with it.
SHARED_WITH_DEFAULT_PARENT = (*INHERITED["finetune"], "seed", "device", "threads", "out")
