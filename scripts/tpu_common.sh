# shellcheck shell=bash
# Functions of set_up_env.sh, pre_training.sh and fine_tuning.sh, which source this file. docs/tpu.md explains them.

# Settings of the env file that must have a value, and all that it may have.
required="PROJECT ZONE TPU_NAME"
settings="$required FOLDER PYTHON RECORDS IMAGENET_VAL
PRE_TRAINING_CONFIG PRE_TRAINING_RUN PRE_TRAINING_FLAGS FINE_TUNING_CONFIG FINE_TUNING_RUN FINE_TUNING_FLAGS"
dry_run=0
stop=0

fail() {
  echo "error: $*" >&2
  exit 2
}

# Read the arguments of a script: the env file and flags, of which $1 names those that the script has.
read_arguments() {
  local flags=$1 file=""
  shift
  while (($#)); do
    case $1 in
      --help) awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; exit 0 ;;
      --*) [[ " $flags " == *" $1 "* ]] || fail "unknown flag $1; --help lists the flags" ;;&
      --dry-run) dry_run=1 ;;
      --stop) stop=1 ;;
      *) [[ -z $file ]] || fail "two env files: $file and $1"; file=$1 ;;
    esac
    shift
  done
  [[ -n $file ]] || fail "the env file is missing; copy scripts/tpu.env.example and give its path"
  read_env "$file"
}

# Set the variables that an env file names. It is read and never run; other names are errors, so no key can be in it.
read_env() {
  local file=$1 line number=0 name value
  [[ -f $file ]] || fail "$file does not exist; copy scripts/tpu.env.example"
  FOLDER=clipa_eqx
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    [[ $line =~ ^([A-Za-z_]+)=(.*)$ ]] || fail "$file:$number: expected NAME=value, got: $line"
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    [[ " ${settings//$'\n'/ } " == *" $name "* ]] || fail "$file:$number: $name is no setting; the settings are: ${settings//$'\n'/ }"
    printf -v "$name" '%s' "$value"
  done <"$file"
  for name in $required; do
    [[ -n ${!name:-} ]] || fail "$file: $name has no value"
  done
}

# Check that settings have a value.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || fail "$name has no value in the env file"
  done
}

# Run gcloud for the TPU, or print the command in a dry run: $1 is ssh or scp.
tpu() {
  local command=(gcloud compute tpus tpu-vm "$@" --project "$PROJECT" --zone "$ZONE" --worker all)
  if ((dry_run)); then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

# Run a script on each worker.
on_workers() {
  tpu ssh "$TPU_NAME" --command "$1"
}

# Start or stop a stage on all workers: its name, config, run folder, and further arguments of train.py.
run_stage() {
  local name=$1 config=$2 run=$3 train head
  shift 3
  train=(.venv/bin/python scripts/train.py "$config" --workdir "$run" --distributed "$@")
  [[ -z ${RECORDS:-} ]] || train+=(--data.sources.0.folder "$RECORDS")
  if [[ -n ${IMAGENET_VAL:-} ]]; then train+=(--zero-shot.0.data "$IMAGENET_VAL"); else train+=(--zero-shot none); fi
  # A process is ours only if it is the recorded one and still has this command; no other process gets a signal.
  head="set -eu
cd $(printf '%q' "$FOLDER")
mkdir -p logs
log=logs/$name.log pid_file=logs/$name.pid
pid=\$(cat \"\$pid_file\" 2>/dev/null || true)
is_ours=no
ours=$(printf '%q' "scripts/train.py $config --workdir $run ")
if [ -n \"\$pid\" ] && tr '\\0' ' ' 2>/dev/null <\"/proc/\$pid/cmdline\" | grep -qF -- \"\$ours\"; then is_ours=yes; fi"
  if ((stop)); then
    on_workers "$head
if [ \$is_ours = no ]; then echo \"\$(hostname): $name does not run\"; exit 0; fi
kill -TERM \"\$pid\"
echo \"\$(hostname): process \$pid saves and ends\""
  else
    on_workers "$head
if [ \$is_ours = yes ]; then echo \"error: \$(hostname): $name runs already, as process \$pid\" >&2; exit 2; fi
nohup $(printf '%q ' "${train[@]}")>>\"\$log\" 2>&1 </dev/null &
echo \$! >\"\$pid_file\"
echo \"\$(hostname): process \$!, log $(printf '%q' "$FOLDER")/\$log\""
  fi
}
