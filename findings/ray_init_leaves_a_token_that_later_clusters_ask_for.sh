#!/usr/bin/env bash
# ray 2.60.0: after a plain ray.init(), clusters that the same user starts refuse programs that give their address.
#
# ray.init() without an address writes ~/.ray/auth_token and leaves it there. A `ray start --head` of that user takes the
# token into use from then on, without a word. But ray.init("HOST:PORT") sends no token, unless RAY_AUTH_MODE=token is set:
# it fails after 20 s with "Failed to connect to Ray cluster", though the cluster runs and has answered. So a program that
# used the address for months stops to work after somebody tried Ray in a notebook once.
# What helps: RAY_AUTH_MODE=token for all programs and nodes, or remove the file and start the cluster again.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder, which is also the home folder of the
# programs, from the package registry that pip is set up with. Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d /tmp/XXXXXX)
cluster=
trap '[ -z "$cluster" ] || kill "$cluster" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet ray==2.60.0
export HOME="$folder/home" RAY_TMPDIR="$folder/r" RAY_USAGE_STATS_ENABLED=0
mkdir "$HOME" "$RAY_TMPDIR"
unset RAY_ADDRESS RAY_AUTH_MODE
small=(--num-cpus 1 --include-dashboard=false --object-store-memory 83886080)

connect() {
    timeout 90 "$folder/venv/bin/python" -c "
import sys, ray
try:
    ray.init('127.0.0.1:6397', log_to_driver=False)
except ConnectionError as error:
    sys.exit(f'ConnectionError: {error}')
print('connected')" 2>&1 | tail -1
}

"$folder/venv/bin/python" -c "
import ray
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)" >/dev/null 2>&1
echo "left by ray.init(): $(ls "$HOME/.ray")"
"$folder/venv/bin/ray" start --head --block --port 6397 "${small[@]}" >"$folder/log" 2>&1 &
cluster=$!
for _ in $(seq 60); do
    grep -q "Ray runtime started" "$folder/log" && break
    sleep 0.5
done
plain=$(connect || true)
token=$(RAY_AUTH_MODE=token connect || true)
echo "by its address: $plain"
echo "with RAY_AUTH_MODE=token: $token"
[[ -f "$HOME/.ray/auth_token" && $plain == "ConnectionError: Failed to connect"* && $token == connected ]]
