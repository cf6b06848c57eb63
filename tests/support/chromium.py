"""Pages in headless Chromium at any width, light or dark: a screenshot, and what is wider than the page."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# The page measures itself: the window of headless Chromium is never narrower than 500 pixels, a frame may be.
_MEASURE = """<script>addEventListener("load",function(){
var wide=[...document.querySelectorAll("body *")].filter(function(e){
if(e.closest(".scroll,pre")&&!e.matches(".scroll,pre"))return false;
return e.getBoundingClientRect().right>document.documentElement.clientWidth+0.5&&e.getBoundingClientRect().width>0})
.map(function(e){return e.tagName+" "+e.className});
parent.postMessage({width:document.documentElement.scrollWidth,window:document.documentElement.clientWidth,
height:document.documentElement.scrollHeight,dark:matchMedia("(prefers-color-scheme:dark)").matches,wide:wide},"*")})
</script>"""
_FRAME = """<!doctype html><style>body{{margin:0}}iframe{{border:0;display:block;width:{width}px;height:{height}px}}
pre{{display:none}}</style><iframe src="{name}"></iframe><pre id=found></pre><script>
addEventListener("message",function(m){{document.getElementById("found").textContent=JSON.stringify(m.data)}})</script>"""


def measured(page: Path, *, width: int, dark: bool, folder: Path) -> dict:
    """The width of the content, the height, the color scheme, and elements that reach beyond the right edge."""
    frame = _framed(page, width=width, height=800, folder=folder)
    dom = _run("--dump-dom", "--virtual-time-budget=3000", frame=frame, size=(max(width, 500), 900), dark=dark)
    return json.loads(html.unescape(re.search(r"<pre id=\"found\">(.*?)</pre>", dom, re.DOTALL)[1]))


def screenshot(page: Path, *, width: int, height: int, dark: bool, folder: Path, out: Path) -> np.ndarray:
    """The first ``height`` pixels of a page, as ``height width 3`` levels; also written to ``out``."""
    frame = _framed(page, width=width, height=height, folder=folder)
    _run(f"--screenshot={out}", "--hide-scrollbars", frame=frame, size=(max(width, 500), height), dark=dark)
    with Image.open(out) as image:
        cut = image.convert("RGB").crop((0, 0, width, height))
    cut.save(out)
    return np.asarray(cut)


def _framed(page: Path, *, width: int, height: int, folder: Path) -> Path:
    copy, frame = folder / f"measured-{page.name}", folder / f"frame-{width}-{page.name}"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
    frame.write_text(_FRAME.format(width=width, height=height, name=copy.name), encoding="utf-8")
    return frame


def _run(*flags: str, frame: Path, size: tuple[int, int], dark: bool) -> str:
    assert PROGRAM is not None
    command = [
        *(PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={frame.parent / 'profile'}"),
        *(f"--window-size={size[0]},{size[1]}", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
        *(*flags, frame.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
