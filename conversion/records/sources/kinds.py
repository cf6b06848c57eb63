"""The six kinds of sources: how each is planned and how a part of it is read."""

from collections.abc import Iterator

from clipa_eqx.errors import DataError
from conversion.records.files import Place, open_place
from conversion.records.rows import IngestOptions, Kind, Lost, Part, Plan, Row, Tally


def plan_source(place: Place, *, kind: Kind, options: IngestOptions) -> Plan:
    """The parts of a source in order.

    Raises:
        DataError: the source is of another kind, empty or not readable, a package that reads it is not installed, its
            first rows lack a column, or there is no folder `images`.
    """
    if options.images is not None:
        images = open_place(options.images)
        if images.is_local and not images.fs.isdir(images.path):
            raise DataError(f"--images: there is no folder {options.images}")
    match kind:
        case "img2dataset":
            from conversion.records.sources.tfrecords import plan_img2dataset

            return plan_img2dataset(place, options=options)
        case "tfds":
            from conversion.records.sources.tfrecords import plan_tfds

            return plan_tfds(place, options=options)
        case "webdataset":
            from conversion.records.sources.tars import plan_webdataset

            return plan_webdataset(place, options=options)
        case "parquet":
            from conversion.records.sources.parquet import plan_parquet

            return plan_parquet(place, options=options)
        case "folder":
            from conversion.records.sources.class_folders import plan_folder

            return plan_folder(place, options=options)
        case "captions":
            from conversion.records.sources.caption_lists import plan_captions

            return plan_captions(place, options=options)


def read_part(place: Place, part: Part, *, kind: Kind, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The rows of a part in order, with those that cannot be had as lost rows.

    Raises:
        DataError: the part cannot be opened.
    """
    match kind:
        case "img2dataset":
            from conversion.records.sources.tfrecords import read_img2dataset

            return read_img2dataset(place, part, options=options)
        case "tfds":
            from conversion.records.sources.tfrecords import read_tfds

            return read_tfds(place, part, options=options)
        case "webdataset":
            from conversion.records.sources.tars import read_webdataset

            return read_webdataset(place, part, options=options, tally=tally)
        case "parquet":
            from conversion.records.sources.parquet import read_parquet

            return read_parquet(place, part, options=options)
        case "folder":
            from conversion.records.sources.class_folders import read_listed

            return read_listed(place, part, options=options, labeled=True)
        case "captions" if part.lines is None:
            from conversion.records.sources.class_folders import read_listed

            return read_listed(place, part, options=options, labeled=False)
        case "captions":
            from conversion.records.sources.tables import read_table

            return read_table(place, part, options=options)


def is_labeled(kind: Kind, options: IngestOptions) -> bool:
    """Whether rows of the source need a label and may do without a caption."""
    return kind == "folder" or options.label_column is not None or (kind == "tfds" and options.caption_column is None)
