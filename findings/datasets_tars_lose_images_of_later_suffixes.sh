#!/usr/bin/env bash
# datasets 5.2.0: `load_dataset` on tar files keeps only the members whose suffixes the first 5 samples have. Images of
# other suffixes are lost without a message: their rows stay, and have no image.
#
# A tar with 5 samples of `.jpg` and `.txt`, then 3 of `.png` and `.txt`, gives 8 rows with the columns jpg and txt; the
# last 3 have no image, because there is no column png.
# Seen on Linux with Python 3.11. What helps: read such tars with `conversion.records webdataset`, whose image may have any
# suffix; for fixtures that the library reads back, give all images of a tar one suffix.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder from the package registry that pip is set
# up with. Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 pillow==13.0.0
cat >"$folder/load.py" <<'PYTHON'
import io
import pathlib
import sys
import tarfile

import datasets
from PIL import Image


def image(kind):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


source = pathlib.Path(sys.argv[1]) / "set"
source.mkdir()
with tarfile.open(source / "train-0000.tar", "w") as tar:
    for number in range(8):
        suffix = "jpg" if number < 5 else "png"
        for name, content in ((suffix, image("JPEG" if number < 5 else "PNG")), ("txt", b"a caption")):
            member = tarfile.TarInfo(f"{number}.{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
data = datasets.load_dataset(str(source), split="train")
images = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
found = [any(row[name] is not None for name in images) for row in data]
print(f"columns of images: {images}; rows with an image: {found}")
is_as_seen = images == ["jpg"] and found == [True] * 5 + [False] * 3
print("as described" if is_as_seen else "changed")
sys.exit(0 if is_as_seen else 1)
PYTHON
status=0
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$folder/venv/bin/python" "$folder/load.py" "$folder" \
  2>/dev/null || status=$?
exit "$status"
