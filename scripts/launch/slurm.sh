#!/usr/bin/env bash
# Slurm, one task a node; DeepSpeed starts the ranks of each node itself, so no ssh is needed.
#   sbatch --nodes 2 scripts/launch/slurm.sh scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml
#SBATCH --job-name=dft_mm
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --output=runs/slurm-%j.log
set -euo pipefail
hosts=$(mktemp --tmpdir="${SLURM_SUBMIT_DIR:-.}" hosts.XXXXXX)
trap 'rm -f "$hosts"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=${SLURM_GPUS_ON_NODE}/" > "$hosts"
export MASTER_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) HOSTS=$hosts
# $SLURM_NODEID differs between tasks, so it is read inside each.
srun bash -c 'deepspeed --hostfile "$HOSTS" --no_ssh --node_rank "$SLURM_NODEID" --master_addr "$MASTER_NODE" \
    --master_port 29500 --module dft_mm train "$@"' dft_mm "$@"
