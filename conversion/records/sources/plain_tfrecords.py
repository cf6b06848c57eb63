"""TFRecord files of ``tf.Example``s: those of img2dataset, and others, such as ImageNet's. Read as ``img2dataset``."""

import itertools
import re
from collections.abc import Iterator

from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import Lost, Part, Plan, Row, Tally
from conversion.records.sources.damage import Damaged, with_lost_rest
from conversion.records.sources.example_proto import Features
from conversion.records.sources.examples import choose_features, read_examples, read_features
from conversion.records.sources.planning import Choice, plan_files
from conversion.records.sources.row_counts import img2dataset_count, is_unfinished, statistics_files
from conversion.records.sources.source import SourceFiles
from conversion.records.sources.tfrecords import read_tfrecords

# `train-00000-of-01024` without a suffix is how shards of ImageNet are usually named.
_NAME = re.compile(r"\.tfrecords?(\.gz)?(-\d+-of-\d+)?(\.gz)?$|^[^.]+-\d+-of-\d+$")


def is_tfrecord_name(name: str) -> bool:
    """Check whether a file has a usual name of TFRecord files."""
    return _NAME.search(name.rpartition("/")[2]) is not None


def plan_tfrecords(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan one part per file, with columns chosen from the first examples."""
    where = f"the first examples of {files.place.url}"

    def choose(examples: Iterator[Features]) -> Choice:
        return Choice(choose_features(examples, options=options, where=where))

    def first(part: Part) -> Iterator[Features]:
        return read_features(read_tfrecords(files.place, part.path))

    return plan_files(files, first=first, choose=choose, about=statistics_files(files))


def read_plain_tfrecords(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The examples of a file in order, with one lost row for the rest of a file that is cut or damaged."""
    rows = read_examples(read_tfrecords(place, part.path), part)
    expected = img2dataset_count(place, part, tally)
    if expected is None and is_unfinished(place, part):
        rows = itertools.chain(rows, _no_end())
    return with_lost_rest(rows, part, expected=expected)


def _no_end() -> Iterator[Row | Lost]:
    raise Damaged("img2dataset did not finish it: the table next to it has no end")
    yield
