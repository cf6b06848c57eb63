# shellcheck shell=bash
# Functions of set_up_env.sh, pre_training.sh and fine_tuning.sh, which source this file. docs/tpu.md explains them.

# Settings of the env file that must have a value, and all that it may have.
required="PROJECT ZONE TPU_NAME"
settings="$required FOLDER PYTHON RECORDS IMAGENET_VAL"
settings+=" PRE_TRAINING_CONFIG PRE_TRAINING_RUN PRE_TRAINING_FLAGS FINE_TUNING_CONFIG FINE_TUNING_RUN FINE_TUNING_FLAGS"
dry_run=0
action=start

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
      --help)
        awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
        exit 0
        ;;
      -*)
        [[ " $flags " == *" $1 "* ]] || fail "unknown flag $1; --help lists the flags"
        if [[ $1 == --dry-run ]]; then dry_run=1; else action=${1#--}; fi
        ;;
      *)
        [[ -z $file ]] || fail "two env files: $file and $1"
        file=$1
        ;;
    esac
    shift
  done
  [[ -n $file ]] || fail "the env file is missing; copy scripts/tpu.env.example and give its path"
  read_env "$file"
}

# Set the variables that an env file names, and no others: what the shell of the caller has of these names is forgotten.
# The file is read and never run; another name is an error, so that no key gets into it.
read_env() {
  env_file=$1
  local file=$1 line number=0 name value given=" "
  [[ -f $file && -r $file ]] || fail "$file does not exist or cannot be read; copy scripts/tpu.env.example"
  for name in $settings; do
    unset "$name"
  done
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%"${line##*[![:space:]]}"} # spaces at the end, and the carriage return of Windows
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    [[ $line =~ ^([A-Za-z_]+)=(.*)$ ]] || fail "$file:$number: expected NAME=value, got: $line"
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    [[ " $settings " == *" $name "* ]] || fail "$file:$number: $name is no setting; the settings are: $settings"
    [[ $given != *" $name "* ]] || fail "$file:$number: $name is set twice"
    [[ $value != *[\"\']* ]] || fail "$file:$number: $name has a quotation mark; a value is everything after the ="
    [[ $value != *" #"* ]] || fail "$file:$number: $name has a comment; put it on a line of its own"
    [[ $value != [[:space:]]* ]] || fail "$file:$number: $name begins with a space; a value is everything after the ="
    [[ $value != "~"* ]] || fail "$file:$number: $name begins with ~, which is not replaced; give the complete path"
    given+="$name "
    printf -v "$name" '%s' "$value"
  done <"$file"
  for name in $required; do
    need "$name"
  done
  FOLDER=${FOLDER:-clipa_eqx}
  PYTHON=${PYTHON:-python3.11}
  RECORDS=${RECORDS:-}
  IMAGENET_VAL=${IMAGENET_VAL:-}
}

# Check that settings have a value in the env file, and that run folders are paths or in a bucket.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || fail "$env_file: $name has no value"
    [[ $name != *_RUN || ${!name} != *://* || ${!name} =~ ^(gs|s3)://[^/]+/.+ ]] ||
      fail "$env_file: $name is ${!name}; a run folder is gs://BUCKET/NAME, s3://BUCKET/NAME, or a path on a file system that all workers share"
  done
}

# Run a command, or print it in a dry run, ready to paste.
run() {
  if ! ((dry_run)); then
    "$@"
    return
  fi
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  echo "${line% }"
}

# Run gcloud for all workers of the TPU: $1 is ssh or scp. It runs them at once, and prints which worker failed.
tpu() {
  local code=0
  ((dry_run)) || command -v gcloud >/dev/null || fail "there is no gcloud; install the Google Cloud CLI and log in"
  run gcloud compute tpus tpu-vm "$@" --project "$PROJECT" --zone "$ZONE" --worker all || code=$?
  if ((code)); then
    echo "error: gcloud ended with exit code $code for TPU $TPU_NAME in $ZONE; the reason is above" >&2
    exit "$code"
  fi
}

# Run an action of scripts/tpu_worker.sh in the clone on each worker, after the command $1.
on_workers() {
  local before=$1 folder
  shift
  folder=$(printf '%q' "$FOLDER")
  tpu ssh "$TPU_NAME" --command \
    "${before}cd $folder && bash scripts/tpu_worker.sh$(printf ' %q' "$@")"
}

# Start a stage on all workers, or what a flag asks for: its name, config, run folder, and further arguments of train.py.
run_stage() {
  local stage=$1 config=$2 run=$3 arguments=()
  shift 3
  if [[ $action == start ]]; then
    arguments=(--distributed "$@")
    [[ -z $RECORDS ]] || arguments+=(--data.sources.0.folder "$RECORDS")
    if [[ -n $IMAGENET_VAL ]]; then arguments+=(--zero-shot.0.data "$IMAGENET_VAL"); else arguments+=(--zero-shot none); fi
  fi
  on_workers "" "$action" "$stage" "$config" "$run" ${arguments[@]+"${arguments[@]}"}
}
