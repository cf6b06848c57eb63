#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: arrays cannot be saved to s3://; only gs:// gets a driver for buckets.
#
# The specification that Orbax makes for TensorStore has the driver "gcs" for gs://. For every other address it has the
# driver for local files: {"driver": "file", "path": "s3:/bucket/run/a"}, although TensorStore has a driver for S3.
# What helps: write the arrays with TensorStore itself.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder from the package registry that pip is set
# up with. Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat >"$folder/spec.py" <<'PYTHON'
import sys

from orbax.checkpoint._src.serialization import tensorstore_utils

spec = tensorstore_utils.build_kvstore_tspec("gs://bucket/run", name="a", use_ocdbt=False)
print(spec)
try:
    other = tensorstore_utils.build_kvstore_tspec("s3://bucket/run", name="a", use_ocdbt=False)
except ValueError as error:
    print(f"ValueError: {error}")
    sys.exit(0)
print(other)
sys.exit(0 if other.get("driver") == "file" else 1)
PYTHON
"$folder/venv/bin/python" "$folder/spec.py"
