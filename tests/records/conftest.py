"""Fixtures of conversions: a small dump of tars, folders of all kinds, and a fresh log for each test."""

import logging

import pytest
from support import dumps
from support.bucket_servers import bucket_server
from support.dumps import samples

from clipa_eqx.locks import fence, held

SLOW_BUCKETS = [pytest.param(scheme, marks=pytest.mark.slow) for scheme in ("gs", "s3")]


@pytest.fixture(autouse=True)
def fresh_log():
    """Reset logging: ``run`` logs to the standard error of its test, which the next test does not have."""
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)


@pytest.fixture
def tars(tmp_path):
    """Three tars of two samples each."""
    dumps.write_tars(tmp_path / "tars", [samples(2, first=2 * i) for i in range(3)])
    return tmp_path / "tars"


@pytest.fixture
def no_waiting(monkeypatch):
    """No time is spent on processes that may still end and on file systems that show an older content."""
    monkeypatch.setattr(held, "_ENDING_SECONDS", 0.0)
    monkeypatch.setattr(fence, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(fence, "MISSING_SECONDS", 0.0)


@pytest.fixture(scope="module")
def servers():
    """Starts each server of buckets once."""
    with pytest.MonkeyPatch.context() as patch:
        running = {}

        def start(scheme):
            if scheme not in running:
                server = bucket_server(scheme)
                running[scheme] = server, server.__enter__()
                for name, value in running[scheme][1].variables(patience=5).items():
                    patch.setenv(name, value)
            return running[scheme][1]

        yield start
        for server, _ in running.values():
            server.__exit__(None, None, None)


@pytest.fixture(params=["local", "gs", pytest.param("s3", marks=pytest.mark.slow)])
def target(request, tmp_path, servers):
    """The address of a new folder."""
    return new_folder(request.param, tmp_path, servers)


@pytest.fixture(params=["local", *SLOW_BUCKETS])
def anywhere(request, tmp_path, servers):
    """The same for tests in which a bucket differs little from a local folder: those with buckets are slow ones."""
    return new_folder(request.param, tmp_path, servers)


def new_folder(kind, tmp_path, servers):
    return str(tmp_path / "out") if kind == "local" else servers(kind).url(tmp_path.name)
