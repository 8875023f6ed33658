#!/usr/bin/env bash
# Fine-tune on several nodes of a Slurm cluster, then evaluate the best checkpoint on the test split.
#
#   sbatch jobs/multinode.sh --config configs/vitb16.yaml --optim.lr 2e-5
#   sbatch --nodes 4 --gpus-per-node 8 jobs/multinode.sh --config configs/vitb16.yaml
#
# Every argument goes to medclip_oc.train, except the run folder: set RUN_FOLDER for another one.
# Submit from the repository's root. Adapt the lines below to the cluster (partition, GPUs, time).

#SBATCH --job-name=medclip_oc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
##SBATCH --partition=gpu

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?multinode.sh runs under Slurm: sbatch jobs/multinode.sh}"

PYTHON=${PYTHON:-.venv/bin/python}
RUN_FOLDER=${RUN_FOLDER:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}
# one process per GPU; on a partition without GPUs one per node
PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
((PROCESSES_PER_NODE > 0)) || PROCESSES_PER_NODE=1

# The ranks meet on the job's first node; the port depends on the job, so that two jobs can share it.
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((${SLURM_CPUS_PER_TASK:-1} + PROCESSES_PER_NODE - 1) / PROCESSES_PER_NODE))}

echo "job $SLURM_JOB_ID: $SLURM_JOB_NUM_NODES nodes x $PROCESSES_PER_NODE processes, meeting at $HEAD:$PORT, run folder $RUN_FOLDER"

# since Slurm 22.05 a step doesn't inherit the job's cores by itself
CORES=(--cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
srun "${CORES[@]}" --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc_per_node "$PROCESSES_PER_NODE" \
    --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_backend c10d \
    --rdzv_endpoint "$HEAD:$PORT" \
    -m medclip_oc.train "$@" --run.folder "$RUN_FOLDER"

if [[ ! -e $RUN_FOLDER/checkpoints/best.pt ]]; then
    echo "no best.pt, since data.valid is null: nothing to evaluate"
    exit 0
fi
srun "${CORES[@]}" --nodes=1 --ntasks=1 "$PYTHON" -m medclip_oc.evaluate \
    --checkpoint "$RUN_FOLDER/checkpoints/best.pt" --split test
