#!/usr/bin/env bash
# Start the second stage on all workers of a TPU, in the background, from the weights of the first. The same command
# resumes it.
#
#   scripts/fine_tuning.sh tpu.env [--dry-run] [--status] [--stop]
#
# --dry-run prints the gcloud command and runs none. --status prints on each worker whether this stage runs, or how it
# ended, and the last line of its log. --stop sends SIGTERM to this stage, which saves and ends.
set -euo pipefail
# shellcheck source=scripts/tpu_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"
read_arguments "--dry-run --status --stop" "$@"
need PRE_TRAINING_RUN FINE_TUNING_CONFIG FINE_TUNING_RUN

read -ra flags <<<"${FINE_TUNING_FLAGS:-}"
run_stage fine_tuning "$FINE_TUNING_CONFIG" "$FINE_TUNING_RUN" --init-from "$PRE_TRAINING_RUN" ${flags[@]+"${flags[@]}"}
