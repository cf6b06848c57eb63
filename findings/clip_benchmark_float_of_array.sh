#!/usr/bin/env bash
# clip-benchmark 1.6.2 with NumPy 2.4 or later: zero-shot classification ends with a TypeError instead of its scores.
#
# `metrics/zeroshot_classification.py` computes top-1 and top-5 as `float(...sum(0, keepdim=True).cpu().numpy())`, the
# float of an array with one element and one dimension. NumPy warned of this conversion since 1.25 and refuses it since
# 2.4. The requirements of clip-benchmark do not limit NumPy, so a new environment gets a version that refuses it. The
# error comes after all images were encoded. Retrieval and the mean average precision of sets with several labels do not
# use the function.
#
# The package also imports `requests` without requiring it: where no other package brings it, as in the environment made
# here, each command ends with "No module named 'requests'". It is therefore installed next to it.
#
# Seen on Linux with torch 2.14.1, open_clip_torch 3.3.0, Python 3.11, on four images and a small open_clip model with
# random weights:
#   numpy 2.4.6: TypeError: only 0-dimensional arrays can be converted to Python scalars; no result file
#   numpy 2.3.5: a result file with acc1
# What helps: `numpy<2.4` and `requests` next to clip-benchmark.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder from the package registry that pip is set
# up with (about 6 GB, most of it torch). Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet clip-benchmark==1.6.2 torch==2.14.1 torchvision==0.29.1 \
    open_clip_torch==3.3.0 setuptools requests numpy==2.4.6
cat >"$folder/make.py" <<'PYTHON'
"""A set in the layout of clip_benchmark's web datasets: four images of two classes in one tar."""

import io
import pathlib
import sys
import tarfile

import numpy as np
from PIL import Image

folder = pathlib.Path(sys.argv[1])
(folder / "test").mkdir(parents=True)
(folder / "test" / "nshards.txt").write_text("1\n")
(folder / "classnames.txt").write_text("cat\ndog\n")
(folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
with tarfile.open(folder / "test" / "0.tar", "w") as tar:
    for i in range(4):
        file = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        for name, content in ((f"s{i}.png", file.getvalue()), (f"s{i}.cls", str(i % 2).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
PYTHON
"$folder/venv/bin/python" "$folder/make.py" "$folder/set"

score() { # prints the last line of the program, and whether it wrote a result
    local numpy out="$folder/result-$1.json"
    numpy=$("$folder/venv/bin/python" -c 'import numpy; print(numpy.__version__)')
    "$folder/venv/bin/python" -m clip_benchmark.cli eval --dataset wds/tiny --dataset_root "$folder/set" \
        --task zeroshot_classification --model ViT-S-32-alt --pretrained "" --no_amp --num_workers 0 --batch_size 2 \
        --output "$out" >"$folder/log" 2>&1 || true
    if [ -e "$out" ]; then
        echo "numpy $numpy: $(cat "$out")"
    else
        echo "numpy $numpy: no result; $(tail -n 1 "$folder/log")"
    fi
}

new=$(score new)
echo "$new"
"$folder/venv/bin/python" -m pip install --quiet numpy==2.3.5
old=$(score old)
echo "$old"
case "$new" in *"no result; TypeError: only 0-dimensional arrays"*) ;; *) echo changed; exit 1 ;; esac
case "$old" in *'"acc1"'*) echo "as described" ;; *) echo changed; exit 1 ;; esac
