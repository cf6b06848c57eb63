#!/usr/bin/env bash
# Copy this clone to all workers of a TPU and install it there.
#
#   scripts/set_up_env.sh tpu.env [--dry-run]
#
# --dry-run prints the commands and runs none. The last commit is copied, without its tests and without
# changes that are not committed.
set -euo pipefail
clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/tpu_common.sh
source "$clone/scripts/tpu_common.sh"
read_arguments "--dry-run" "$@"

changes=$(git -C "$clone" status --porcelain) || fail "$clone is no clone of git; the scripts copy its last commit"
[[ -z $changes ]] || echo "note: changes that are not committed are not copied" >&2
archive=clipa_eqx.tar.gz
folder=$(printf '%q' "$FOLDER")
if ((dry_run)); then
  file=$PWD/$archive
else
  temporary=$(mktemp -d)
  trap 'rm -rf "$temporary"' EXIT
  file=$temporary/$archive
fi

# The tests, most of its bytes, are left out.
run git -C "$clone" archive --format tar.gz -o "$file" HEAD -- . ':(exclude)tests'
tpu scp "$file" "$TPU_NAME:$archive"
# A stage that runs keeps the code that it was started with.
idle="[ ! -f $folder/scripts/tpu_worker.sh ] || (cd $folder && bash scripts/tpu_worker.sh idle)"
on_workers "$idle && mkdir -p $folder && tar -xzf $archive -C $folder && " install "$PYTHON"
