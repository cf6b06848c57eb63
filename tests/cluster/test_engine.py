"""The choice of an engine: what ``--engine`` may be, and addresses at which no cluster answers."""

import os
import socket
import sys
import threading

import pytest

from clipa_eqx.cluster import connection
from clipa_eqx.cluster.answering import no_answer
from clipa_eqx.cluster.connection import connected
from clipa_eqx.cluster.engine import LOCAL, Engine, parse_engine
from clipa_eqx.cluster.facts import differences, facts_of_process, versions_of
from clipa_eqx.errors import ConfigError


@pytest.fixture
def listening():
    """The address of a server that accepts connections and says nothing until the client does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, f"127.0.0.1:{server.getsockname()[1]}"


def connect(engine):
    with connected(engine, facts=dict):
        pass


def test_the_engines_by_name():
    assert parse_engine("local") == LOCAL == Engine()
    assert parse_engine("ray") == Engine(kind="ray")
    assert parse_engine("ray:head.cluster:6379") == Engine(kind="ray", address="head.cluster:6379")
    assert parse_engine("ray:[::1]:6379").address == "[::1]:6379"


@pytest.mark.parametrize("text", ["", "spark", "Ray", "ray:", "local:1", "ray:head", "ray:head:port", "ray:head:70000"])
def test_what_is_no_engine_is_refused(text):
    with pytest.raises(ConfigError, match="--engine"):
        parse_engine(text)


def test_ray_client_is_refused_with_advice(monkeypatch):
    for text in ("ray:ray://head:10001", "ray://head:10001"):
        with pytest.raises(ConfigError, match=r"start the command on a node of the cluster .* `ray job submit`"):
            parse_engine(text)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match="RAY_ADDRESS=ray://head:10001 is an address of Ray Client"):
        connect(Engine(kind="ray"))


@pytest.mark.parametrize(("content", "own"), [(b"", 0), (b"\xff", 0), (b"no address", 0), (b"127.0.0.1:6379", 1)])
def test_a_file_that_names_no_cluster_of_this_user_is_left_alone(content, own, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    path = tmp_path / "ray/ray_current_cluster"
    path.parent.mkdir()
    path.write_bytes(content)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + own)
    assert connection._address(Engine(kind="ray")) == (None, "")
    path.write_bytes(b"127.0.0.1:6379")
    monkeypatch.setattr(os, "getuid", lambda: user)
    assert connection._address(Engine(kind="ray"))[0] == "127.0.0.1:6379"


def test_without_the_package_one_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs the package ray, which is not installed: pip install ray"):
        connect(Engine(kind="ray"))


def test_an_address_where_nothing_answers_is_refused_at_once(monkeypatch, listening):
    server, address = listening
    server.close()
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address} .*refused"):
        connect(Engine(kind="ray", address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}"):
        connect(Engine(kind="ray"))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "what answers there is no Ray cluster"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is no Ray cluster"),
        (b"\0\0\0\4\0\0\0\0\0", None),  # settings of HTTP/2, as gRPC sends them
    ],
)
def test_servers_that_are_no_cluster_are_told_from_one(answer, problem, listening):
    server, address = listening

    def serve():
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)

    serving = threading.Thread(target=serve)
    serving.start()
    assert no_answer(address) == problem
    serving.join()


def test_a_server_that_stays_silent_is_given_up(listening):
    _, address = listening
    assert no_answer(address, seconds=0.1) == "timed out"


def test_facts_name_what_differs():
    here = facts_of_process("clipa_eqx") | versions_of("numpy", "no_such_package")
    assert set(here) == {"Python", "the processor", "the code of clipa_eqx", "numpy", "no_such_package"}
    assert here["no_such_package"] == "not installed"
    assert differences(here, here) == []
    assert differences(here, here | {"numpy": "1.0"}) == [f"numpy is 1.0, here {here['numpy']}"]
    assert differences(here, {}) == [f"{name} is unknown, here {value}" for name, value in here.items()]


def test_the_hash_of_code_sees_every_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    hashes = set()
    for number, (name, text) in enumerate([("a.py", "x = 1"), ("a.py", "x = 2"), ("deep/b.py", "")]):
        for package in (f"copy_{number}_one", f"copy_{number}_two"):
            (tmp_path / package / "deep").mkdir(parents=True)
            (tmp_path / package / "__init__.py").touch()
            (tmp_path / package / name).write_text(text)
            (tmp_path / package / "notes.txt").write_text(package)
            hashes.add(facts_of_process(package)[f"the code of {package}"])
    assert len(hashes) == 3
