#!/usr/bin/env bash
# Actions of the TPU scripts on one worker. They call it over ssh, in the folder of the clone; docs/tpu.md explains them.
#
#   scripts/tpu_worker.sh idle
#   scripts/tpu_worker.sh install PYTHON
#   scripts/tpu_worker.sh start|stop|status STAGE CONFIG RUN [arguments of train.py]
#
# A stage has three files in logs/: STAGE.log, STAGE.pid (its process) and STAGE.exit (its exit code, once it has ended).
set -euo pipefail
action=$1
shift

fail() {
  echo "error: $(hostname): $*" >&2
  exit 2
}

# The words of a process's command, one a line; nothing if there is no such process.
command_of() {
  tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline" || true
}

# Whether a process is a stage that was started here. Numbers are reused: only the complete command makes it ours.
is_ours() {
  local pid=$1 config=$2 run=$3
  [[ -n $pid && $(command_of "$pid") == *$'\n'"scripts/train.py"$'\n'"$config"$'\n'"--workdir"$'\n'"$run"$'\n'* ]]
}

# Refuse while a stage runs: another version of the code must not replace that of a running program.
idle() {
  local file pid
  for file in logs/*.pid; do
    pid=$(cat "$file" 2>/dev/null || true)
    [[ -z $pid || $(command_of "$pid") != *$'\n'"scripts/train.py"$'\n'* ]] ||
      fail "$(basename "$file" .pid) runs, as process $pid; --stop ends it"
  done
}

install() {
  local python=$1
  command -v "$python" >/dev/null || fail "there is no $python; install Python 3.11 or later, and set PYTHON in the env file"
  # A .venv without pip is that of an interrupted start.
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --quiet -c constraints.txt -e '.[tpu,bucket]'
  .venv/bin/python - <<'PYTHON'
import jax

jax.distributed.initialize()
worker = f"worker {jax.process_index()} of {jax.process_count()}"
print(f"{worker}: {jax.local_device_count()} of {jax.device_count()} {jax.default_backend()} devices")
PYTHON
}

# Run the stage and record its process and its exit code; the log is the output of this.
train() {
  local stage=$1 code=0
  shift
  .venv/bin/python scripts/train.py "$@" &
  echo $! >"logs/$stage.pid"
  wait $! || code=$?
  echo "$code" >"logs/$stage.exit"
}

start() {
  local stage=$1 config=$2 run=$3 pid
  shift 3
  [[ -x .venv/bin/python ]] || fail "$PWD is not installed; run scripts/set_up_env.sh"
  [[ -f $config ]] || fail "$PWD has no $config; commit it, and run scripts/set_up_env.sh"
  pid=$(cat "logs/$stage.pid" 2>/dev/null || true)
  ! is_ours "$pid" "$config" "$run" || fail "$stage runs already, as process $pid; --stop ends it"
  mkdir -p logs
  rm -f "logs/$stage.pid" "logs/$stage.exit"
  nohup bash "$0" train "$stage" "$config" --workdir "$run" "$@" >>"logs/$stage.log" 2>&1 </dev/null &
  for _ in {1..100}; do
    [[ ! -s logs/$stage.pid ]] || break
    sleep 0.1
  done
  echo "$(hostname): $stage runs as process $(<"logs/$stage.pid"), log $PWD/logs/$stage.log"
}

stop() {
  local stage=$1 config=$2 run=$3 pid
  pid=$(cat "logs/$stage.pid" 2>/dev/null || true)
  if is_ours "$pid" "$config" "$run"; then
    kill -TERM "$pid"
    echo "$(hostname): $stage saves and ends, process $pid"
  else
    echo "$(hostname): $stage does not run"
  fi
}

# Print the state of a stage and the last line of its log; the exit code is 0 if it runs or is complete.
status() {
  local stage=$1 config=$2 run=$3 pid code said
  pid=$(cat "logs/$stage.pid" 2>/dev/null || true)
  code=$(cat "logs/$stage.exit" 2>/dev/null || true)
  if is_ours "$pid" "$config" "$run"; then
    said="runs as process $pid" code=0
  elif [[ $code == 0 ]]; then
    said="is complete"
  elif [[ $code == 75 ]]; then
    said="was interrupted and saved (exit code 75); the same command resumes it"
  elif [[ -n $code ]]; then
    said="failed with exit code $code"
  elif [[ -n $pid ]]; then
    said="was killed; the same command resumes it" code=1
  else
    said="was not started" code=1
  fi
  echo "$(hostname): $stage $said"
  [[ ! -s logs/$stage.log ]] || tail -n 1 "logs/$stage.log"
  return "$code"
}

case $action in
  idle | install | train | start | stop | status) "$action" "$@" ;;
  *) fail "unknown action $action" ;;
esac
