# All targets run in .venv, which is created when it is first needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Folder with data/ and checkpoints/ for the experiments on CIFAR images and MNIST; see README.
SHARED ?= ../shared
CIFAR := $(SHARED)/data/cifar10.tar.xz
MNIST := $(SHARED)/data/mnist.tar.xz
TINY_IMAGENET := $(SHARED)/data/tiny-imagenet-32.tar.xz
RESNET20 := $(SHARED)/checkpoints/resnet20-12fca82f.th

FAULTS := saturated randomly_resized flat_relu quantised left_in_train_mode
comma := ,
space := $(subst ,, )

.DEFAULT_GOAL := help
.PHONY: help install quickstart reproduce reproduce-cifar10-jpeg reproduce-hashing reproduce-mnist reproduce-transfer \
    reproduce-audit test faults lint format bench bench-train bench-attack gpu clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 26

install: .venv/installed  ## create .venv with sstune in it

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

quickstart: .venv/installed  ## train, fine-tune and attack on embedded digits, and a table (minutes); retrieval: docs/hashing.md
	$(BIN)/sstune train experiment=quickstart
	$(BIN)/sstune finetune -m experiment=quickstart rule=bp,usf,frsf,brsf
	$(BIN)/sstune attack -m experiment=quickstart rule=bp,usf,frsf,brsf attack=fgsm,pgd
	$(BIN)/sstune report runs/quickstart/finetune runs/quickstart/attack --out results/quickstart

reproduce: quickstart  ## every experiment whose data is available; resumes, and skips finished runs
ifneq ($(wildcard $(CIFAR)),)
	$(MAKE) reproduce-cifar10-jpeg reproduce-audit reproduce-hashing
else
	@echo "skipped cifar10-jpeg: $(CIFAR) does not exist (make reproduce SHARED=FOLDER)"
endif
ifneq ($(wildcard $(MNIST)),)
	$(MAKE) reproduce-mnist
else
	@echo "skipped mnist-mlp: $(MNIST) does not exist (make reproduce SHARED=FOLDER)"
endif

ifneq ($(wildcard $(TINY_IMAGENET)),)
	$(MAKE) reproduce-transfer
else
	@echo "skipped transfer: $(TINY_IMAGENET) does not exist (make reproduce SHARED=FOLDER)"
endif

reproduce-cifar10-jpeg: .venv/installed  ## ResNet-20 checkpoint, one epoch of fine-tuning on cifar10-jpeg
	$(BIN)/sstune finetune -m experiment=cifar10_jpeg dataset.root=$(CIFAR) init_from=$(RESNET20) \
	    rule=bp,usf,frsf,brsf rule.scale=xavier,weight_rms
	$(BIN)/sstune attack -m experiment=cifar10_jpeg dataset.root=$(CIFAR) attack=fgsm,pgd \
	    'init_from=runs/cifar10-jpeg/finetune/*'
	$(BIN)/sstune report runs/cifar10-jpeg --out results/cifar10-jpeg

# One line for each cell; two processes of one thread each are faster here than one of two. The published recipe
# leaves part of the initial feedback of pfa; stronger weight decay (FORGET) removes it, also for kp, for which no
# recipe is published.
FORGET := optimizer.weight_decay=5e-2 optimizer.weight_decay_gamma=0.0018
define MNIST_CELLS
$(foreach seed,0 1 2 3 4,\
$(foreach rule,bp fa dfa usf,experiment=mnist_mlp rule=$(rule) seed=$(seed);)\
$(foreach rule,pfa pfa_o,experiment=mnist_mlp_trained rule=$(rule) seed=$(seed);)\
experiment=mnist_mlp_trained $(FORGET) rule=kp seed=$(seed);)\
$(foreach seed,0 1,$(foreach rule,pfa pfa_o,experiment=mnist_mlp_trained $(FORGET) rule=$(rule) seed=$(seed);))
endef

reproduce-mnist: .venv/installed  ## the PFA paper's MNIST table: 39 runs, two side by side (about an hour)
	@echo '$(MNIST_CELLS)' | tr ';' '\n' | grep experiment | \
	    xargs -P 2 -I CELL sh -c '$(BIN)/sstune train dataset.root=$(MNIST) CELL'
	$(BIN)/python scripts/published.py mnist_mlp

# Settings for 2 CPU cores and a C++ compiler; on a GPU, make gpu.
reproduce-transfer: .venv/installed  ## ResNet-20 from tiny-imagenet-32 to cifar10-jpeg, and from scratch
	$(BIN)/sstune train experiment=tiny_imagenet_32 dataset.root=$(TINY_IMAGENET) backbone=resnet20 epochs=8
	$(BIN)/sstune finetune -m experiment=transfer_cifar10_jpeg dataset.root=$(CIFAR) rule=bp,usf,frsf,brsf \
	    'init_from=runs/tiny-imagenet-32/train/resnet20*'
	$(BIN)/sstune train experiment=transfer_cifar10_jpeg dataset.root=$(CIFAR) backbone=resnet20
	$(BIN)/sstune report runs/tiny-imagenet-32 runs/transfer --out results/transfer

# Each line of scripts/hashing_cells.py is a run, or a sweep over networks; two of one thread run side by side.
reproduce-hashing: .venv/installed  ## retrieval: five losses, eight networks, attacks on the codes (6 CPU hours)
	$(BIN)/python scripts/hashing_cells.py finetune | xargs -P 2 -I CELL sh -c \
	    'OMP_NUM_THREADS=1 $(BIN)/sstune finetune dataset.root=$(CIFAR) init_from=$(RESNET20) CELL'
	$(BIN)/python scripts/hashing_cells.py attack | xargs -P 2 -I CELL sh -c \
	    'OMP_NUM_THREADS=1 $(BIN)/sstune attack -m dataset.root=$(CIFAR) CELL'
	$(BIN)/sstune report runs/hashing-cifar10-jpeg --out results/hashing-cifar10-jpeg

# The checkpoint converted with unchanged weights; the checkpoint with five planted faults; and two trained
# networks: one by BP, the surrogate of the audits, and one by adversarial training.
AUDIT = $(BIN)/sstune attack -m experiment=audit_cifar10_jpeg dataset.root=$(CIFAR) \
    audit.surrogate=$$(ls -d runs/cifar10-jpeg/finetune/resnet20-cifar10-jpeg-bp-s0-* | head -1)

reproduce-audit: .venv/installed  ## the masking audit of converted, faulty and adversarially trained networks (hours)
	$(BIN)/sstune finetune experiment=cifar10_jpeg dataset.root=$(CIFAR) init_from=$(RESNET20) rule=bp
	$(BIN)/sstune finetune experiment=adversarial_cifar10_jpeg dataset.root=$(CIFAR) init_from=$(RESNET20)
	$(AUDIT) init_from=$(RESNET20) rule=bp,sham,pfa_o
	$(AUDIT) init_from=$(RESNET20) rule=usf,frsf,brsf,fa rule.scale=xavier,weight_rms
	$(AUDIT) init_from=$(RESNET20) rule=brsf rule.scale=xavier,weight_rms attack.redraw=forward
	$(AUDIT) 'init_from=runs/adversarial-cifar10-jpeg/finetune/*'
	CHECKPOINT=$(RESNET20) $(AUDIT) attack.n=150 audit.black_box_n=80 audit.label_n=50 \
	    model.factory=$(subst $(space),$(comma),$(FAULTS:%=scripts.faults:%))
	$(BIN)/sstune report runs/audit --out results/audit

# Benchmarks and training for a machine with a GPU; not run yet. Needs the archives of cifar10 and
# tiny-imagenet-32, the ResNet-20 checkpoint, and the package index for BioTorch's environment (--venv).
gpu: .venv/installed  ## benchmarks and the transfer of ResNet-18 on a GPU
	$(BIN)/python scripts/bench.py step --device cuda --batch-size 512 --compile --precision bf16 --warmup 5 \
	    --out results/bench/step-cuda.csv
	$(BIN)/python scripts/bench.py train --device cuda --data $(CIFAR) --venv .venv-biotorch --steps 50 \
	    --compile reduce_overhead --workers 16 --out results/bench/train-resnet20-cuda.csv
	$(BIN)/python scripts/bench.py train --device cuda --data $(CIFAR) --venv .venv-biotorch --steps 20 \
	    --backbone resnet18 --batch-size 512 --workers 16 --out results/bench/train-resnet18-cuda.csv
	$(BIN)/python scripts/bench.py attack --device cuda --data $(CIFAR) --checkpoint $(RESNET20) \
	    --out results/bench/attack-cuda.csv
	$(BIN)/sstune train experiment=tiny_imagenet_32 dataset.root=$(TINY_IMAGENET)
	$(BIN)/sstune finetune -m experiment=transfer_cifar10_jpeg dataset.root=$(CIFAR) rule=bp,usf,frsf,brsf \
	    'init_from=runs/tiny-imagenet-32/train/resnet18*'
	$(BIN)/sstune train experiment=transfer_cifar10_jpeg dataset.root=$(CIFAR) backbone=resnet18
	$(BIN)/sstune report runs/tiny-imagenet-32 runs/transfer --out results/transfer-resnet18

test: .venv/installed-dev  ## run the tests (2 processes, no GPU, no network)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Two trials at a time, in temporary folders; writes the CSV file and the table in docs/reliability.md.
faults: .venv/installed-dev  ## trials of kills, full disks, damaged files and concurrent sweeps (15 minutes; needs gcc)
	$(BIN)/python tests/reliability/suite.py --out results/reliability/faults.csv --page docs/reliability.md

lint: .venv/installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev  ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed  ## step time and memory of each rule against bp
	$(BIN)/python scripts/bench.py step

bench-attack: .venv/installed  ## PGD at four eps against the plain torchattacks loop
	$(BIN)/python scripts/bench.py attack --data $(CIFAR) --checkpoint $(RESNET20)

bench-train: .venv/installed  ## training throughput against a plain PyTorch loop (needs the CIFAR archive)
	$(BIN)/python scripts/bench.py train --data $(CIFAR)

clean:  ## remove .venv and caches; runs/ and results/ stay
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
