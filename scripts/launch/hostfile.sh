#!/usr/bin/env bash
# Several nodes that reach each other by ssh without a password and see the same folders (code, data, run folder).
#   HOSTFILE=hosts scripts/launch/hostfile.sh scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml
# hosts holds one line a node: `node1 slots=8`. Over ssh DeepSpeed passes on only PYTHON*, MLFLOW*, UCX* and its
# accelerator's variables; put others, such as NCCL_SOCKET_IFNAME=eth0, into ~/.deepspeed_env, one K=V a line.
set -euo pipefail
exec deepspeed --hostfile "${HOSTFILE:-hosts}" --module dft_mm train "$@"
