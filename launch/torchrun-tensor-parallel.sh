#!/bin/bash
# A rollout of a model that does not fit one GPU: two GPUs hold it together. On a machine of eight these are four
# replicas, which share the shards.
#   bash launch/torchrun-tensor-parallel.sh
set -euo pipefail

export OMP_NUM_THREADS=1
torchrun --standalone --nproc-per-node gpu --module t3d.cli rollout --tensor-parallel 2 \
  --model JetLM/SDAR-30B-A3B-Chat --prompts questions.jsonl --out runs/rollouts --resume
