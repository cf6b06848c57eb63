#!/usr/bin/env bash
# Start the first stage on all workers of a TPU, in the background. The same command resumes it.
#
#   scripts/pre_training.sh tpu.env [--dry-run] [--status] [--stop]
#
# --dry-run prints the gcloud command and runs none. --status prints on each worker whether this stage runs, or how it
# ended, and the last line of its log. --stop sends SIGTERM to this stage, which saves and ends.
set -euo pipefail
# shellcheck source=scripts/tpu_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"
read_arguments "--dry-run --status --stop" "$@"
need PRE_TRAINING_CONFIG PRE_TRAINING_RUN

read -ra flags <<<"${PRE_TRAINING_FLAGS:-}"
run_stage pre_training "$PRE_TRAINING_CONFIG" "$PRE_TRAINING_RUN" ${flags[@]+"${flags[@]}"}
