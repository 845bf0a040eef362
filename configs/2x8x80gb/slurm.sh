#!/usr/bin/env bash
# Run a stage on two nodes of 8 GPUs under Slurm; the arguments are those of `mmrlhf`:
#   sbatch configs/2x8x80gb/slurm.sh ppo --config 2x8x80gb/ppo --dataset_name prompts.jsonl ...
# Ten minutes before its time ends, the run saves after the step and stops; so it does on `scancel --signal=TERM JOB`. Submit it
# again to continue.
#SBATCH --job-name=mmrlhf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --output=%x-%j.log
set -euo pipefail

# Split the base over all processes (FSDP2). Leave both lines out if it fits on one GPU.
export ACCELERATE_USE_FSDP=true
export FSDP_VERSION=2
# Seconds that torchrun leaves its processes to finish their step and save; 30 by default.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

main_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc_per_node "${GPUS_PER_NODE:-8}" \
  --rdzv_id "$SLURM_JOB_ID" \
  --rdzv_backend c10d \
  --rdzv_endpoint "$main_node:${MASTER_PORT:-29500}" \
  -m mmrlhf "$@"
