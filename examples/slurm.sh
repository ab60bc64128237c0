#!/bin/bash
#SBATCH --job-name=minitron
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Distills on 2 nodes with 4 GPUs each. Scores and the pruned child are there already, under runs/ beside this job's
# directory, which all nodes see. Five minutes before the time limit Slurm sends SIGTERM to this script: the training
# saves its state, the job goes back into the queue, and the same command continues. Submit it from the project's
# directory: sbatch examples/slurm.sh
set -euo pipefail

read -r first_node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")  # without a pipe, whose writer could fail
stopped=""
trap 'stopped=yes; kill -TERM "$training"' TERM

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first_node:29500" \
    -m minitron_cli distill --tokens 20B --sharding full &
training=$!

code=0
wait "$training" || code=$?
if [ -n "$stopped" ]; then
    wait "$training" || true  # the first wait ended with the signal; this one with the training
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
