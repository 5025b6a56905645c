#!/bin/bash
# One run of the sweep, alone in its folder. Under SLURM it saves five minutes before its time is over and is put back into the
# queue, as by tools/train.sbatch.
#
#   bash recipes/ablation/run.sh FOLDER MINUTES COMMAND ...
set -u
folder=$1 minutes=$2
shift 2

if [ "$minutes" -lt 10 ]; then
    echo "runtime is $minutes minutes, of which saving may take five; set at least 10" >&2
    exit 2
fi
trap : TERM # which the command gets as well: wait until it has saved
. recipes/ablation/lock.sh "$folder" || exit

if [ -z "${SLURM_JOB_ID:-}" ]; then
    "$@"
    exit
fi
# `sbatch --signal` is for job steps, and the first task of the executor's arrays (2.8.0) has none.
timeout --foreground $((60 * minutes - 300)) "$@"
status=$?
if [ "$status" -eq 124 ]; then # not where scancel or a preemption ended it
    scontrol requeue "$SLURM_JOB_ID" && sleep 600 # until SLURM ends it; for Snakemake it would have failed
fi
exit "$status"
