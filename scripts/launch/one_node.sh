#!/usr/bin/env bash
# One node, all its GPUs (or GPUS=4 of them). On a machine without a GPU: GPUS=2 DS_ACCELERATOR=cpu OMP_NUM_THREADS=1.
#   scripts/launch/one_node.sh scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml optim.lr=1e-5
# Run the same command again and it goes on where it stopped. To stop it after the step: kill -USR1 -- -PGID, its group.
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
[ "$gpus" -gt 0 ] || { echo "one_node.sh: no GPU found; say GPUS=2 to train on the CPU with two ranks" >&2; exit 2; }
# The launcher answers SIGTERM with SIGKILL for ranks that are not done in 30 s; SIGUSR1 it is made to ignore here, and
# the ranks take as long as they need.
trap '' USR1
exec deepspeed --num_gpus "$gpus" --module dft_mm train "$@"
