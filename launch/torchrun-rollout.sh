#!/bin/bash
# A rollout on all GPUs of one machine, a process each; every process takes its part and its GPU from torchrun.
#   bash launch/torchrun-rollout.sh
# `accelerate launch --multi_gpu --num_processes 8 -m t3d.cli rollout ...` does the same.
set -euo pipefail

export OMP_NUM_THREADS=1
torchrun --standalone --nproc-per-node gpu --module t3d.cli rollout \
  --model JetLM/SDAR-4B-Chat --prompts questions.jsonl --out runs/rollouts --resume
