"""Lists whose images are not here: URLs that nobody has downloaded yet, and paths of another machine."""

import json
import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence

from clipa_eqx.errors import DataError
from conversion.records.options import IngestOptions
from conversion.records.places import Place, open_place, protocols
from conversion.records.rows import Columns, printable, shortened

_URL = re.compile(r"\s*https?://", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # of Windows
_FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")  # of img2dataset


def is_url(value: object) -> bool:
    """Check whether a value is the URL of something in the web."""
    return isinstance(value, str) and _URL.match(value) is not None


def check_header(names: Sequence[str], path: str) -> None:
    """Refuse a list without a header whose rows are URLs and captions, such as those of CC3M and CC12M.

    Raises:
        DataError: its first line has a URL.
    """
    urls = [i for i, name in enumerate(names) if is_url(name)]
    if not urls:
        return
    found = f"{path} lists URLs of images that have not been downloaded, such as {_shown(names[urls[0]])}"
    if len(names) != 2 or len(urls) != 1:
        raise DataError(f"{found}, and has no header; {download_advice(path, 'URL_COLUMN', None)}")
    header = "url\\tcaption" if urls == [0] else "caption\\turl"
    with_header = f"{{ printf '{header}\\n'; cat {_name(path)}; }} > with_urls.tsv"
    raise DataError(
        f"{found}, and has no header; {download_advice('with_urls.tsv', 'url', 'caption', before=with_header)}"
    )


def check_paths(paths: Iterable[object], columns: Columns, *, place: Place, options: IngestOptions, where: str) -> None:
    """Refuse a list whose first paths of images are all URLs in the web, or all absolute paths of another machine.

    Raises:
        DataError: they are.
    """
    given = [value for value in paths if isinstance(value, str) and value]
    if not given:
        return
    if all(map(is_url, given)) and not _reads_web(place, options):
        raise DataError(
            f"{where}: column {columns.path!r} holds URLs of images that have not been downloaded, such as "
            f"{_shown(given[0])}; {download_advice(where, columns.path or '', next(iter(columns.captions), None))}"
        )
    if all(map(_DRIVE.match, given)):
        folders = [path.replace("\\", "/").rpartition("/")[0] for path in given]
        _refuse_foreign(folders, columns, where, windows="\\" in given[0])
    elif place.is_local and all(path.startswith("/") for path in given) and not any(map(os.path.exists, given)):
        folders = [path.rpartition("/")[0] for path in given]
        if not any(map(os.path.exists, set(folders) - {""})):
            _refuse_foreign(folders, columns, where, windows=False)


def _refuse_foreign(folders: Sequence[str], columns: Columns, where: str, *, windows: bool) -> None:
    shared = (posixpath.commonpath(folders) or folders[0]).rstrip("/")
    shared = f"{shared}/".replace("/", "\\") if windows else f"{shared}/"
    suffix = posixpath.splitext(where)[1]
    written = json.dumps(shared)[1:-1] if suffix in (".json", ".jsonl", ".ndjson") else shared
    pattern = re.sub(r"([\\.*\[\]^$#])", r"\\\1", written)
    command = f"sed {shlex.quote(printable(f's#{pattern}##'))} {_name(where)} > relative{suffix}"
    raise DataError(
        f"{where}: column {columns.path!r} holds absolute paths of another machine: there is no folder "
        f"{printable(shared)} here; remove it from the paths, as by `{command}`, and give the folder that holds the "
        "images here with --images"
    )


def _reads_web(place: Place, options: IngestOptions) -> bool:
    allowed = {*protocols(place.fs), *(protocols(open_place(options.images).fs) if options.images else ())}
    return not allowed.isdisjoint(("http", "https"))


def download_advice(where: str, url: str, caption: str | None, *, before: str = "") -> str:
    """Commands that download the images of a list and convert them.

    Args:
        where: the list.
        url: its column with URLs.
        caption: its column with captions.
        before: a command that makes the list first.
    """
    suffix = where.rpartition(".")[2].lower()
    kind = suffix if suffix in _FORMATS else "csv"
    columns = f"--url_col {shlex.quote(url)} --caption_col {shlex.quote(caption or 'CAPTION_COLUMN')}"
    download = (
        f"img2dataset --url_list {_name(where)} --input_format {kind} {columns} --output_format webdataset "
        "--output_folder downloaded"
    )
    commands = [*([before] if before else []), download, "python -m conversion.records webdataset downloaded DST"]
    return f"download them by {', then '.join(f'`{command}`' for command in commands)}"


def _name(path: str) -> str:
    return shlex.quote(printable(path.rpartition("/")[2]))


def _shown(url: str) -> str:
    return shortened(printable(url.strip()), 60)
