#!/usr/bin/env bash
# tensorflow-datasets 4.9.10: `tfds convert_format --out_dir=FOLDER` writes the shards, but no metadata.
#
# The shards of FOLDER are looked for with a pattern that starts with the path of the source, so none is found. The
# function behind the command then raises "Found 0 shards for split test, but expected 1 shards", after all shards were
# written; the command itself, with its default of 8 workers, drops this error and exits with 0. FOLDER has no
# dataset_info.json and no features.json. The names of classes (label.labels.txt) would be missing in any case, because
# only .json files are copied.
#
# Seen on Linux with tensorflow 2.21.0, array-record 0.8.6, Python 3.11:
#   with out_dir:    ValueError; x-test.array_record-00000-of-00001 alone
#   without out_dir: the new shards are next to the old ones, and `alternativeFileFormats` names the form
# What helps: leave --out_dir out, or copy the .json and .labels.txt files and correct `fileFormat`.
# `tfds` itself needs the packages apache-beam and mlcroissant, which tensorflow-datasets does not install.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder from the package registry that pip is set
# up with. Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet tensorflow-datasets==4.9.10 tensorflow==2.21.0 array-record==0.8.6 \
    apache-beam==2.77.0
cat >"$folder/convert.py" <<'PYTHON'
import json
import pathlib
import sys

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.scripts.cli.convert_format_utils import convert_dataset


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = "x"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"number": np.int64, "label": tfds.features.ClassLabel(names=["a", "b"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": ((i, {"number": i, "label": i % 2}) for i in range(4))}

    def _generate_examples(self):
        raise NotImplementedError


parent = pathlib.Path(sys.argv[1])
builder = Builder(data_dir=parent / "data")
builder.download_and_prepare()
source, target = pathlib.Path(builder.data_path), parent / "converted"
error = ""
try:
    convert_dataset(out_dir=target, out_file_format="array_record", dataset_version_dir=str(source), num_workers=1)
except ValueError as raised:
    error = str(raised)
alone = sorted(path.name for path in target.iterdir())
print("with out_dir:", error, alone)
convert_dataset(out_dir=None, out_file_format="array_record", dataset_version_dir=str(source), num_workers=1)
info = json.loads((source / "dataset_info.json").read_text())
print("without out_dir:", sorted(path.name for path in source.iterdir()), info["alternativeFileFormats"])
is_as_seen = "Found 0 shards" in error and alone == ["x-test.array_record-00000-of-00001"]
is_as_seen = is_as_seen and info["alternativeFileFormats"] == ["array_record"]
print("as described" if is_as_seen else "changed")
sys.exit(0 if is_as_seen else 1)
PYTHON
status=0
"$folder/venv/bin/python" "$folder/convert.py" "$folder" 2>"$folder/stderr" || status=$?
exit "$status"
