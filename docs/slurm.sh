#!/bin/bash
# Pretrain on many nodes under SLURM; ends before the wall limit with a checkpoint, and queues itself again until done.
#
#   sbatch --nodes 4 --gpus-per-node 8 docs/slurm.sh recipes/protein-nano.yaml shared/runs/first [options of pretrain]
#
# The run folder, the corpus and this repository lie on storage that all nodes see. docs/scale.md explains the lines.
#SBATCH --job-name=biometro
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
recipe=$1 run=$2
shift 2

export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# The signal reaches every process of the job's steps. torchrun must ignore it; each rank sets its own handler. The trap
# stands inside the step, for SLURM gives its tasks fresh ones; the shell of this script has its own.
trap '' USR1
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" bash -c 'trap "" USR1; exec torchrun "$@"' torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
    -m -- biometro pretrain --config "$recipe" --run "$run" "$@"
status=$?

# torchrun knows success and failure only; whether the run was stopped before its end stands in its folder.
stopped=$(cat "$run/exit-status" 2> /dev/null || echo "$status")
if [ "$status" -eq 0 ] && [ "$stopped" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 75
fi
exit "$status"
