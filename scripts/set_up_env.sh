#!/usr/bin/env bash
# Copy this clone to all workers of a TPU and install it there.
#
#   scripts/set_up_env.sh tpu.env [--dry-run]
#
# --dry-run prints the gcloud commands and runs none. The last commit is copied; changes that are not committed are not.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/tpu_common.sh
source "$here/tpu_common.sh"
read_arguments "--dry-run" "$@"

archive=clipa_eqx.tar.gz
folder=$(printf '%q' "$FOLDER") python=$(printf '%q' "${PYTHON:-python3.11}")
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
git -C "$here/.." archive --format tar.gz -o "$temporary/$archive" HEAD
[[ -z $(git -C "$here/.." status --porcelain) ]] || echo "note: changes that are not committed are not copied" >&2

tpu scp "$temporary/$archive" "$TPU_NAME:$archive"
on_workers "set -eu
mkdir -p $folder
tar -xzf $archive -C $folder
cd $folder
[ -x .venv/bin/python ] || $python -m venv .venv
.venv/bin/python -m pip install --quiet --upgrade pip
.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[tpu,gcs]'
.venv/bin/python -c 'import jax; jax.distributed.initialize(); print(jax.process_index(), jax.device_count())'"
