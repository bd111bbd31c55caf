#!/usr/bin/env bash
# Slurm, one task a node; DeepSpeed starts the ranks of each node itself, so no ssh is needed.
#   sbatch --nodes 2 scripts/launch/slurm.sh scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml
# Five minutes before the time is over, or when the job is to make room for another, its ranks save and stop, and the job
# is put into the queue again; so it is after a node failure. It goes on from its newest whole checkpoint.
#SBATCH --job-name=dft_mm
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --output=runs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300
set -euo pipefail
hosts=$(mktemp --tmpdir="${SLURM_SUBMIT_DIR:-.}" hosts.XXXXXX)
trap 'rm -f "$hosts"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=${SLURM_GPUS_ON_NODE}/" > "$hosts"
export MASTER_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) HOSTS=$hosts
# Slurm signals the tasks, and SIGTERM comes before SIGKILL when a job is pre-empted. The shells and the launcher ignore
# SIGUSR1, which the ranks catch themselves. $SLURM_NODEID differs between tasks, so it is read inside each.
code=0
srun bash -c 'trap "" USR1; exec deepspeed --hostfile "$HOSTS" --no_ssh --node_rank "$SLURM_NODEID" \
    --master_addr "$MASTER_NODE" --master_port 29500 --module dft_mm train "$@"' dft_mm "$@" || code=$?
# 3: stopped by a signal after saving.
if [ "$code" -eq 3 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
