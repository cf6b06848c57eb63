"""The account of a conversion: reports in any order give one manifest, and files of reports survive or are ignored."""

import hashlib
import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.errors import DataError
from conversion.records.account import PartReports, close_account, describe_rows
from conversion.records.keys import ENTRY
from conversion.records.options import IngestOptions, check_options
from conversion.records.part_report import PartReport, report_from_json, report_to_json
from conversion.records.rows import Part, Plan

REASONS = st.sampled_from(["empty caption", "missing image", "too small"])
VERSIONS = st.sampled_from([{"pillow": "11"}, {"pillow": "12"}, {"pillow": "11", "pyarrow": "20"}])
PLAN = Plan(parts=(Part(source="a", path="a", size=1),), class_names=("cat", "dog"), info={"split": "train"})


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


@st.composite
def part_reports(draw, number):
    dropped = draw(st.dictionaries(REASONS, st.integers(1, 5), max_size=3))
    written = draw(st.integers(0, 9))
    shard = {"name": f"shard-{number}", "count": written, "bytes": 10, "sha256": "0" * 64}
    return PartReport(
        number=number,
        size=1,
        rows_read=written + sum(dropped.values()),
        rows_written=written,
        dropped=dropped,
        examples={reason: [{"key": f"{number}-{i}"} for i in range(min(n, 3))] for reason, n in dropped.items()},
        captions_written=written,
        captions_dropped=draw(st.dictionaries(REASONS, st.integers(1, 5), max_size=2)),
        fewest_captions=1 if written else None,
        most_captions=draw(st.integers(1, 5)) if written else 0,
        shown=[{"key": f"{number}-{i}"} for i in range(min(written, 3))],
        sampled_captions=(sampled := draw(st.integers(0, 5))),
        pieces=9 * sampled,
        unknown_pieces=draw(st.integers(0, 9 * sampled)),
        damaged=[{"source": f"{number}.tar"}] if draw(st.booleans()) else [],
        shards=[shard] if written else [],
        keys=digest(f"keys {number}"),
        content=digest(f"content {number}"),
        limit=None,
        duplicates=0,
        ignored_members=draw(st.integers(0, 2)),
        scattered_tars=draw(st.integers(0, 1)),
        captions_of_lines=draw(st.integers(0, 3)),
        lowest_label=(lowest := draw(st.none() | st.integers(0, 9))),
        highest_label=None if lowest is None else lowest + draw(st.integers(0, 9)),
        most_labels=draw(st.integers(0, 3)),
        versions=draw(VERSIONS),
        downloads=(downloads := draw(st.integers(0, 9))),
        failed_downloads=draw(st.integers(0, downloads)),
    )


REPORTS = st.integers(0, 5).flatmap(lambda count: st.tuples(*(part_reports(number) for number in range(count))))
quick = settings(max_examples=40, deadline=None)


def collected(reports, examples=2):
    found = PartReports(examples)
    for report in reports:
        found.add(report)
    return found


def account(reports):
    return close_account(collected(reports), PLAN, {"name": "test"}, IngestOptions())


@quick
@given(REPORTS, st.randoms())
def test_the_manifest_does_not_depend_on_the_order_of_the_reports(reports, random):
    shuffled = random.sample(reports, len(reports))
    first = account(reports)
    assert account(shuffled) == first
    assert account([*shuffled, *shuffled]) == first  # a report that comes again replaces itself


@quick
@given(REPORTS)
def test_every_number_of_the_manifest_is_the_sum_over_the_parts(reports):
    made = account(reports)
    assert made.rows_read == sum(report.rows_read for report in reports)
    assert [shard.name for shard in made.shards] == [f"shard-{one.number}" for one in reports if one.rows_written]
    for reason in {reason for report in reports for reason in report.dropped}:
        assert made.rows_dropped[reason] == sum(report.dropped.get(reason, 0) for report in reports)
    sampled = sum(report.sampled_captions for report in reports)
    unknown = {"of": "captions", "texts": sampled, "pieces": 9 * sampled}
    unknown["unknown"] = sum(report.unknown_pieces for report in reports)
    names = {"of": "class names", "texts": 2, "pieces": 2, "unknown": 0}
    assert made.info["unknown_pieces"] == (unknown if sampled else names)
    ignored = sum(report.ignored_members for report in reports)
    assert made.info.get("ignored_members", 0) == ignored
    assert ("ignored_members" in made.info) == bool(ignored)
    assert made.info.get("scattered_tars", 0) == sum(report.scattered_tars for report in reports)
    assert made.info.get("captions_of_lines", 0) == sum(report.captions_of_lines for report in reports)
    downloads = {"total": sum(one.downloads for one in reports), "failed": sum(one.failed_downloads for one in reports)}
    assert made.info.get("downloads") == (downloads if downloads["total"] else None)
    full = [report for report in reports if report.rows_written]
    if full:
        most = max(report.most_captions for report in full)
        assert made.info["captions_per_record"] == {"fewest": 1, "most": most}
        assert made.info["records"][0] == full[0].shown[0]
        assert made.info["records"][-1] == full[-1].shown[-1]
        assert len(made.info["records"]) <= 3
    else:
        assert "records" not in made.info
    labels = [one for one in reports if one.lowest_label is not None]
    extremes = (
        {"lowest": min(one.lowest_label for one in labels), "highest": max(one.highest_label for one in labels)}
        if labels
        else None
    )
    assert made.info.get("labels") == extremes
    most_labels = max((one.most_labels for one in reports), default=0)
    assert made.info.get("most_labels") == (most_labels if most_labels > 1 else None)
    assert made.info["damaged_sources"] == [damage for report in reports for damage in report.damaged]
    keys = sum(int(report.keys, 16) for report in reports) % 2**256
    assert made.info["key_fingerprint"] == f"{keys:064x}"
    assert (made.class_names, made.info["split"]) == (("cat", "dog"), "train")


@quick
@given(REPORTS, st.integers(0, 3), st.randoms())
def test_the_first_examples_of_each_reason_are_kept_in_the_order_of_the_source(reports, limit, random):
    found = collected(random.sample(reports, len(reports)), limit).examples()
    for reason in {reason for report in reports for reason in report.dropped}:
        expected = [example for report in reports for example in report.examples.get(reason, [])][:limit]
        assert found.get(reason, []) == expected


@quick
@given(REPORTS)
def test_rows_are_counted_up_to_the_first_part_without_a_report(reports):
    assert collected(reports).first_rows() == sum(report.rows_read for report in reports)
    for missing in range(len(reports)):
        found = collected(reports)
        assert found.first_rows() == sum(report.rows_read for report in reports)
        found.remove(missing)
        assert (len(found), missing in found) == (len(reports) - 1, False)
        assert found.first_rows() == sum(report.rows_read for report in reports[:missing])
        assert all(not one["key"].startswith(f"{missing}-") for held in found.examples().values() for one in held)
        found.add(replace(reports[missing], rows_read=1000))
        assert found.first_rows() == sum(report.rows_read for report in reports) - reports[missing].rows_read + 1000


@quick
@given(REPORTS)
def test_a_collection_changes_nothing_but_the_examples(reports):
    found = collected(report_from_json(report_to_json(report)) for report in reports)
    assert found.in_order() == [replace(report, examples={}) for report in reports]


@quick
@given(part_reports(3))
def test_a_report_survives_its_file_and_names_the_files_it_declares(report):
    found = report_from_json(report_to_json(report))
    assert found == report
    report = replace(report, duplicates=2)
    shards = {shard["name"]: 10 for shard in report.shards}
    entries = (report.rows_written + 2) * ENTRY.itemsize
    assert report.files() == shards | {"_unfinished/part-000003.keys": entries}
    met = {"_unfinished/part-000003.met": 8}
    assert replace(report, met_bytes=8).files() == shards | {"_unfinished/part-000003.keys": entries} | met


@settings(deadline=None)
@given(part_reports(0), st.sampled_from([lambda c: c.popitem(), lambda c: c.update(more=1)]))
def test_a_report_of_another_version_is_ignored(report, change):
    content = asdict(report)
    change(content)
    assert report_from_json(json.dumps(content).encode()) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"3", b"\xff"])
def test_a_damaged_report_is_ignored(data):
    assert report_from_json(data) is None


def test_names_of_the_options_class_win_over_those_of_the_source():
    options = IngestOptions(class_names=("one",))
    assert close_account(collected([]), PLAN, {}, options).class_names == ("one",)


def test_rows_are_described_in_one_line_with_the_reasons_in_order():
    assert describe_rows({"read": 1234}) == "1,234 rows"
    rows = {"too small": 1, "read": 5000, "empty caption": 2000}
    assert describe_rows(rows) == "5,000 rows, dropped: 2,000 empty caption, 1 too small"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_side": -1}, "--min-side must be at least 0, got -1"),
        ({"max_side": 0}, "--max-side must be at least 1, got 0"),
        ({"limit": 0}, "--limit must be at least 1, got 0"),
        ({"records_per_shard": 0}, "--records-per-shard must be at least 1, got 0"),
        ({"examples": -1}, "--examples must be at least 0, got -1"),
        ({"jpeg_quality": 0}, "--jpeg-quality must be between 1 and 100, got 0"),
        ({"jpeg_quality": 101}, "--jpeg-quality must be between 1 and 100, got 101"),
        ({"min_side": 9, "max_side": 8}, "--max-side 8 is smaller than --min-side 9"),
    ],
)
def test_numbers_outside_their_range_are_refused_by_flag(options, words):
    with pytest.raises(DataError, match=words):
        check_options(IngestOptions(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_side": 0, "examples": 0, "limit": 1, "records_per_shard": 1},
        {"jpeg_quality": 1, "min_side": 8, "max_side": 8},
        {"jpeg_quality": 100},
    ],
)
def test_the_ends_of_each_range_are_allowed(options):
    check_options(IngestOptions(**options))
