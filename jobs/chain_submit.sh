#!/bin/bash
# Not for sbatch: it submits three jobs, each of which begins when the one before has ended well, and prints their numbers. The argument is the run's folder.
set -e
: "${1:?give the run folder}"
train=$(sbatch --parsable jobs/chain_train.sbatch "$@")
echo "$train"
evaluate=$(sbatch --parsable --dependency="afterok:$train" --kill-on-invalid-dep=yes jobs/chain_evaluate.sbatch "$1")
echo "$evaluate"
sbatch --parsable --dependency="afterok:$evaluate" --kill-on-invalid-dep=yes jobs/chain_report.sbatch "$1"
