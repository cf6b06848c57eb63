#!/usr/bin/env bash
# Train on all GPUs of one host, and start again when the program was killed or its watchdog ended it. docs/scale.md explains it.
#
#   scripts/launch/one_host.sh CONFIG.py --workdir RUN [flags of train.py]
#
# PYTHON is the interpreter (.venv/bin/python), MAX_RESTARTS the number of restarts (20), RESTART_SECONDS the pause before
# each (10). SIGTERM and SIGINT are passed on: the program saves and ends with exit code 75, and is not started again.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

stopped=0
training=""
stop() {
  stopped=1
  [[ -z $training ]] || kill -TERM "$training" 2>/dev/null
}
trap stop TERM INT

restarts=0
while true; do
  # In a process group of its own: Ctrl-C in a terminal would otherwise reach it twice, and the second ends it unsaved.
  setsid "${PYTHON:-.venv/bin/python}" scripts/train.py "$@" &
  training=$!
  ((!stopped)) || stop
  wait "$training"
  code=$?
  # A trap ends wait early, with a code above 128; the next one returns that of the program.
  while kill -0 "$training" 2>/dev/null; do
    wait "$training"
    code=$?
  done
  if ((stopped && code > 128)); then
    wait "$training"
    code=$?
  fi
  case $code in
    0 | 2 | 3 | 75 | 126 | 127) exit "$code" ;;
  esac
  if ((stopped)); then exit "$code"; fi
  if ((restarts >= ${MAX_RESTARTS:-20})); then
    echo "error: exit code $code after $restarts restarts; not started again" >&2
    exit "$code"
  fi
  restarts=$((restarts + 1))
  echo "exit code $code: restart $restarts in ${RESTART_SECONDS:-10} s" >&2
  sleep "${RESTART_SECONDS:-10}" &
  wait $!
  if ((stopped)); then exit "$code"; fi
done
