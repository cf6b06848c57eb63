"""Labels of records, and the check that a folder has the labels that its scoring needs."""

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.first_records import first_records
from clipa_eqx.data.records import LABELS, Record
from clipa_eqx.errors import DataError


def labels_of(record: Record) -> tuple[int, ...]:
    """All labels of a record: those in ``extra["labels"]``, such as "3,17" or "[3, 17]", or its ``label``.

    Raises:
        DataError: it has none, or they are no numbers.
    """
    text = record.extra.get(LABELS)
    if text is not None:
        try:  # a list in JSON, which conversion keeps for a column of this name, has brackets
            return tuple(int(part) for part in str(text).strip().removeprefix("[").removesuffix("]").split(","))
        except ValueError as error:
            raise DataError(f"record {record.key!r}: extra['labels'] must be like '3,17', got {text!r}") from error
    if record.label is None:
        raise DataError(f"record {record.key!r} has no label; this evaluation needs labeled records")
    return (record.label,)


def check_labels(source: RecordSource, *, classes: int, max_labels: int) -> None:
    """Check the labels of a few records, so that a folder without labels is found before anything is computed.

    Args:
        classes: number of class names.
        max_labels: most labels of a record.

    Raises:
        DataError: the folder has no records; a record is damaged, has no label, too many, or one without a class name.
    """
    if not len(source):
        raise DataError(f"data folder {source.folder} has no records; there is nothing to score")
    for record in first_records(source):
        if isinstance(record, DataError):
            raise record
        try:
            labels = labels_of(record)
            check_number(record, labels, max_labels=max_labels)
        except DataError as error:
            raise DataError(f"data folder {source.folder}: {error}") from error
        if min(labels) < 0 or max(labels) >= classes:
            raise DataError(
                f"data folder {source.folder}: record {record.key!r} has labels {list(labels)}, but there are "
                f"{classes} class names; give the class names that the labels index"
            )


def check_number(record: Record, labels: tuple[int, ...], *, max_labels: int) -> None:
    """Check that a record has at most ``max_labels`` labels; raises DataError."""
    if len(labels) > max_labels:
        raise DataError(
            f"record {record.key!r} has {len(labels)} labels, zero-shot scoring expects at most {max_labels}; "
            "set max_labels (--max-labels) to the most labels of a record"
        )
