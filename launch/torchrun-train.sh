#!/bin/bash
# Training on all GPUs of one machine, a process each.
#   bash launch/torchrun-train.sh recipes/sdar/improved/4b-math-block4.yaml
# What comes after the recipe is passed on: distributed.strategy=fsdp, optim.steps=400, ...
set -euo pipefail

export OMP_NUM_THREADS=4
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300  # seconds for the last checkpoint after Ctrl-C; before torch 2.12 always 30
torchrun --standalone --nproc-per-node gpu --module t3d.cli train "$@" --resume
