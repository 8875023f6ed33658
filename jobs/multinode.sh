#!/usr/bin/env bash
# Fine-tune on one node or many of a Slurm cluster; then evaluate best.pt on the test split.
#
#   sbatch jobs/multinode.sh --config configs/vitb16.yaml --optim.lr 2e-5
#   sbatch --nodes 4 --gpus-per-node 8 jobs/multinode.sh --config configs/vitb16.yaml
#   sbatch jobs/multinode.sh --run.folder runs/mine ...   # go on with that run, or begin it
#
# Submit from the repository's root. Every argument goes to medclip_oc.train. Before the time is up,
# and when the job is preempted, the run saves and the job is put back into the queue; it goes on
# where it was. The run folder, of --run.folder or $RUN_FOLDER or else runs/JOBNAME-JOBID (a config's
# would be that of several jobs), must be on a file system that every node sees.
#
# Adapt these lines to the cluster, or pass them to sbatch.
##SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --job-name=medclip_oc
#SBATCH --output=slurm-%j.log
# Leave these as they are: one launcher per node; word to this script 5 minutes before the end
# (longer than a step, an evaluation's batch and a save); back into the queue, in the same log.
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
WARNED=0
trap 'WARNED=1' USR1 # the time is nearly up; it may come at any moment
cd "${SLURM_SUBMIT_DIR:?multinode.sh runs under Slurm: sbatch jobs/multinode.sh}"

PYTHON=${PYTHON:-.venv/bin/python}
for word in "$@"; do
    [[ ${last:-} != --run.folder ]] || RUN_FOLDER=$word
    [[ $word != --run.folder=* ]] || RUN_FOLDER=${word#*=}
    last=$word
done
RUN_FOLDER=${RUN_FOLDER:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}
MARKER=$RUN_FOLDER/interrupted
# one process per GPU; on a partition without GPUs one per node
PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
((PROCESSES_PER_NODE > 0)) || PROCESSES_PER_NODE=1
ATTEMPT=${SLURM_RESTART_COUNT:-0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((${SLURM_CPUS_PER_TASK:-1} + PROCESSES_PER_NODE - 1) / PROCESSES_PER_NODE))}

# The ranks meet where Slurm itself finds the job's first node; the port depends on the job, so that
# two jobs can share the node.
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
HEAD=$(scontrol show node "$FIRST" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
: "${HEAD:?no address of $FIRST, the first node of $SLURM_JOB_NODELIST}"
PORT=$((20000 + SLURM_JOB_ID % 20000))

# What would go to wandb is kept in the run folder for `wandb sync`, where there is no network.
if [[ -z ${WANDB_MODE:-} ]] && ! timeout 5 bash -c '</dev/tcp/api.wandb.ai/443' 2>/dev/null; then
    export WANDB_MODE=offline
fi

# A job that comes back goes on, whatever it was first told.
AGAIN=()
((ATTEMPT == 0)) || AGAIN=(--resume auto --run.overwrite false)

# A launcher would die of SIGUSR1, and its processes may not hear of it: so this shell, one on each
# node, passes the signal by, again and again, since they hear nothing before they have begun. SIGTERM
# goes to the launcher too, which passes it on itself.
LAUNCH='
    told=0
    trap "told=1" USR1
    trap ":" TERM
    (trap "" USR1; exec "$@") &
    launcher=$!
    while kill -0 "$launcher" 2>/dev/null; do
        ((told == 0)) || pkill --signal USR1 --parent "$launcher"
        (trap "" USR1; exec sleep 1)
    done
    wait "$launcher"
    exit $?'

# Run a command on the nodes; its exit code. What warned this script before it began is told, too.
HEARD=0
on_nodes() {
    # since Slurm 22.05 a step doesn't inherit the job's cores by itself
    (trap '' USR1; exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 "$@") &
    local step=$! code=0
    while kill -0 "$step" 2>/dev/null; do
        sleep 1
        ((WARNED == HEARD)) || kill -USR1 "$step" 2>/dev/null || true
    done
    wait "$step" || code=$?
    HEARD=$WARNED
    return "$code"
}

requeue() {
    if [[ $1 == "$BEFORE" ]]; then
        echo "job $SLURM_JOB_ID: $1, as in the attempt before: it needs more --time" >&2
        exit 1
    fi
    echo "$1" >"$MARKER"
    echo "job $SLURM_JOB_ID: $1; back into the queue"
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        echo "job $SLURM_JOB_ID: can't be requeued here; go on with --run.folder $RUN_FOLDER" >&2
        exit 1
    fi
    sleep 60 # Slurm ends this script
    exit 0
}

echo "job $SLURM_JOB_ID, attempt $ATTEMPT: $SLURM_JOB_NUM_NODES nodes x $PROCESSES_PER_NODE processes, meeting at $FIRST ($HEAD:$PORT), run folder $RUN_FOLDER"
# What an earlier attempt left says nothing about this one; the same once more is no progress.
BEFORE=$(cat "$MARKER" 2>/dev/null || true)
rm -f "$MARKER"
code=0
on_nodes bash -c "$LAUNCH" launch "$PYTHON" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc_per_node "$PROCESSES_PER_NODE" \
    --rdzv_id "$SLURM_JOB_ID-$ATTEMPT" \
    --rdzv_backend c10d \
    --rdzv_endpoint "$HEAD:$PORT" \
    -m medclip_oc.train "$@" --run.folder "$RUN_FOLDER" ${AGAIN[@]+"${AGAIN[@]}"} || code=$?

if ((code)); then
    [[ ! -e $MARKER ]] || requeue "$(<"$MARKER")"
    echo "job $SLURM_JOB_ID: the training ended with exit code $code; the first error above is the cause" >&2
    exit "$code"
fi

if [[ ! -e $RUN_FOLDER/checkpoints/best.pt ]]; then
    echo "no best.pt, since data.valid is null: nothing to evaluate"
    exit 0
fi
on_nodes --nodes=1 --ntasks=1 "$PYTHON" -m medclip_oc.evaluate \
    --checkpoint "$RUN_FOLDER/checkpoints/best.pt" --split test || code=$?
((code == 0 || WARNED == 0)) || requeue "the time was up before the evaluation was done"
exit "$code"
