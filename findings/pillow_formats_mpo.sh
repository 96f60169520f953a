#!/usr/bin/env bash
# Pillow 13.0.0: Image.open with a list of formats that holds "MPO" fails on every file that no format in front of it takes:
# KeyError: 'MPO', in place of going on to the next. MPO is a format that `image.format` gives (JPEG's plugin makes such
# images), and it can be saved; but none is registered for opening under that name.
#
# Seen on 2026-11-27, Python 3.11: formats=("JPEG", "MPO", "BMP") on a BMP: KeyError 'MPO'; ("JPEG", "BMP"): opened.
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "pillow==13.0.0"
"$folder/venv/bin/python" - <<'PY'
import io

import PIL
from PIL import Image

stream = io.BytesIO()
Image.new("RGB", (2, 2)).save(stream, "BMP")
for formats in (("JPEG", "BMP"), ("JPEG", "MPO", "BMP")):
    stream.seek(0)
    try:
        found = f"opened as {Image.open(stream, formats=formats).format}"
    except Exception as error:
        found = repr(error)
    print(f"Pillow {PIL.__version__}, formats={formats}: {found}")
    assert found == ("KeyError('MPO')" if "MPO" in formats else "opened as BMP")
PY
