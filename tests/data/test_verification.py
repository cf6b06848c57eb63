"""Comparison of a shard file with its manifest entry, and which folders are addresses of buckets."""

import hashlib
import io
from pathlib import Path

import pytest

from clipa_eqx.data import verification
from clipa_eqx.data.addresses import is_url
from clipa_eqx.data.manifest import read_manifest
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.data.verification import content_problem, hash_file, size_problem
from clipa_eqx.errors import DataError

CONTENT = b"0123456789" * 5
SHARD = ShardInfo(name="a", count=1, bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


def test_a_size_is_reported_only_if_it_differs():
    assert size_problem(SHARD, 50) is None
    assert size_problem(SHARD, None) == "is missing"
    assert size_problem(SHARD, 0) == "has 0 bytes instead of 50"
    assert size_problem(SHARD, 1_234_567) == "has 1,234,567 bytes instead of 50"


@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_content_is_hashed_in_blocks_of_any_size_and_progress_adds_up(block, monkeypatch):
    monkeypatch.setattr(verification, "_BLOCK", block)
    seen = []
    assert content_problem(SHARD, lambda: io.BytesIO(CONTENT), seen.append) is None
    assert sum(seen) == len(CONTENT)
    assert max(seen) == min(block, len(CONTENT))


@pytest.mark.parametrize("at", [0, 25, 49])
def test_a_flipped_bit_anywhere_gives_both_hashes(at):
    damaged = bytearray(CONTENT)
    damaged[at] ^= 1
    problem = content_problem(SHARD, lambda: io.BytesIO(damaged))
    assert problem is not None
    assert problem.startswith(f"has SHA-256 {hashlib.sha256(damaged).hexdigest()[:12]}...")
    assert problem.endswith(f"instead of {SHARD.sha256[:12]}...")


def test_a_file_that_cannot_be_opened_or_read_is_a_problem_not_an_exception(tmp_path):
    assert str(content_problem(SHARD, (tmp_path / "absent").open)).startswith("cannot be read: ")

    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError("the disk failed")

    assert content_problem(SHARD, Failing) == "cannot be read: the disk failed"


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    assert hash_file(tmp_path / "a") == SHARD.sha256


@pytest.mark.parametrize("folder", ["gs://bucket/a", "s3://bucket", "memory://a", "https://host/a"])
def test_addresses_are_urls(folder):
    assert is_url(folder)


@pytest.mark.parametrize("folder", ["a", "/a/b", "../a", "a b", "a-b.c/d", "x/y:z", Path("a"), Path("/a/b"), ""])
def test_local_paths_are_none(folder):
    assert not is_url(folder)


@pytest.mark.parametrize("folder", ["gs:/bucket/a", Path("gs://bucket/a"), "s3:/bucket"])
def test_a_url_that_lost_a_slash_is_reported(folder):
    with pytest.raises(DataError, match="looks like a URL with one slash"):
        is_url(folder)


@pytest.mark.parametrize("folder", ["s3://bucket/a", "https://host/a", "file:///a"])
def test_only_buckets_of_google_are_read(folder):
    with pytest.raises(DataError, match="local paths and gs:// only"):
        read_manifest(folder)
