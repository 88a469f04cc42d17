#!/bin/bash
# The grid on a Slurm cluster, without Ray: an array of shards, and a job that merges them when all have ended.
#
#   SHARDS=8 benchmarks/ci/slurm.sh -m full --seeds 0-4            # on the login node, in the checkout, in its environment
#   SHARDS=8 ONLY=3,5 benchmarks/ci/slurm.sh -m full --seeds 0-4   # two shards again, as after a time-out
#   SHARDS=8 GPUS= benchmarks/ci/slurm.sh -m quick -n 8            # on nodes without GPUs
#
# All options are pytest's. What your cluster asks for goes into sbatch's own variables, as SBATCH_PARTITION, SBATCH_ACCOUNT.
# RUN is a folder that all nodes see; without it, `run` where you stand.
#SBATCH --job-name=tunegrid --ntasks=1 --cpus-per-task=8 --time=24:00:00 --requeue
set -euo pipefail
run=${RUN:-$PWD/run}

case ${1:-} in
  shard) # one task of the array
    shift
    # A cache of its own: no node writes into another's, and a task that is queued again takes what it had finished.
    export TUNEGRID_CACHE="$run/cache/$SLURM_ARRAY_TASK_ID"
    # Since Slurm 22.05 srun has one core unless it is told.
    exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
      pytest "$@" --shard "$SLURM_ARRAY_TASK_ID/${SHARDS:-$SLURM_ARRAY_TASK_COUNT}" --resume \
      --benchmark-json="$run/shard-$SLURM_ARRAY_TASK_ID.json"
    ;;
  merge) # the job that waits for them
    exec tunegrid merge "$run"/shard-*.json -o "$run/run.json"
    ;;
esac

export SHARDS=${SHARDS:?say how many, as in SHARDS=8 $0 -m full} # where ONLY=3,5, SLURM_ARRAY_TASK_COUNT says 2
export RUN=$run
gpus=${GPUS-1}
mkdir -p "$run"
array=$(sbatch --parsable --array="${ONLY:-1-$SHARDS}" ${gpus:+"--gpus=$gpus"} --output="$run/shard-%a.txt" "$0" shard "$@")
# After any end: a cell that misses a bound fails its shard, and has its row all the same.
sbatch --dependency="afterany:${array%%;*}" --cpus-per-task=1 --time=1:00:00 --output="$run/merge.txt" "$0" merge
