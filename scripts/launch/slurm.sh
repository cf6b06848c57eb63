#!/usr/bin/env bash
# Train on the nodes of a Slurm job, one process per node, which uses all of its GPUs. docs/scale.md explains this file.
#
#   sbatch --nodes 4 scripts/launch/slurm.sh CONFIG.py --workdir RUN [flags of train.py]
#
# Submit it in the folder of the clone. PYTHON is the interpreter on the nodes (.venv/bin/python), MAX_RESTARTS the number
# of times (100) that the job is requeued before a failure ends it. A job that saved (exit code 75) is always requeued.
#
#SBATCH --job-name=clipa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# The last line: Slurm sends SIGTERM to the processes of the step, and not to this script, 300 s before the time is over.
set -uo pipefail

if [[ ! -f scripts/train.py ]]; then
  echo "error: $PWD has no scripts/train.py; run sbatch in the folder of the clone" >&2
  exit 2
fi
if (($# == 0)); then
  echo "error: the config is missing; give CONFIG.py --workdir RUN, and flags of scripts/train.py" >&2
  exit 2
fi

# A preempted job may get SIGTERM here too. Bash runs this once srun has ended, so the script lives as long as the step.
trap 'echo "the job got SIGTERM"' TERM

# Processes end together by themselves: Slurm must not kill those that still save. Each uses all CPUs of its node.
srun --ntasks-per-node=1 --kill-on-bad-exit=0 --cpu-bind=none \
  "${PYTHON:-.venv/bin/python}" scripts/train.py "$@" --distributed
code=$?

# srun returns the highest code of its tasks. 2 is a mistake that another try does not fix, as is a score below its
# guard (3), or a program that is not there (126, 127).
restarts=${SLURM_RESTART_COUNT:-0}
case $code in
  0 | 2 | 3 | 126 | 127) exit "$code" ;;
  75) ;;
  *)
    if ((restarts >= ${MAX_RESTARTS:-100})); then
      echo "error: exit code $code after $restarts restarts; the job is not requeued" >&2
      exit "$code"
    fi
    ;;
esac
# A job that was canceled, or whose Requeue was set to 0, stays ended.
job=$(scontrol show job "$SLURM_JOB_ID")
if [[ $job == *JobState=RUNNING* && $job == *Requeue=1* ]]; then
  echo "exit code $code: requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
