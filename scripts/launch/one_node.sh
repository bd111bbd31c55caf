#!/usr/bin/env bash
# One node, all its GPUs (or GPUS=4 of them). On a machine without a GPU: GPUS=2 DS_ACCELERATOR=cpu OMP_NUM_THREADS=1.
#   scripts/launch/one_node.sh scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml optim.lr=1e-5
# Run the same command again and it goes on where it stopped.
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
[ "$gpus" -gt 0 ] || { echo "one_node.sh: no GPU found; say GPUS=2 to train on the CPU with two ranks" >&2; exit 2; }
# exec in a process group of its own: a signal to the group reaches every rank, which saves and stops.
exec deepspeed --num_gpus "$gpus" --module dft_mm train "$@"
