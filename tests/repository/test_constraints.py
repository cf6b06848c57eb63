"""The exact versions in ``constraints.txt`` satisfy each other, and every extra of the package resolves with them."""

import json
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = canonicalize_name(PROJECT["name"])
EXTRAS = PROJECT["optional-dependencies"]


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def on_this_platform(lines, extras=frozenset()):
    """The requirements that apply here, of a package that is asked for with ``extras``."""
    found = [Requirement(line) for line in lines]
    return [
        one for one in found if not one.marker or any(one.marker.evaluate({"extra": name}) for name in ("", *extras))
    ]


def needs(requirement):
    """Requirements of a requirement: known where its package is installed in the version of ``constraints.txt``."""
    name = canonicalize_name(requirement.name)
    if name == OURS:
        return on_this_platform(line for extra in requirement.extras for line in EXTRAS[extra])
    try:
        installed = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return []
    return on_this_platform(installed.requires or (), requirement.extras) if installed.version == pins()[name] else []


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_versions_satisfy_what_packages_need_of_each_other(extra):
    """Such as libtpu, which was newer than ``jax[tpu]`` allows. The slow test asks pip; this one needs no network."""
    versions, seen = pins(), set()
    waiting = on_this_platform(PROJECT["dependencies"] + EXTRAS[extra])
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        if name != OURS:
            assert name in versions, f"{requirement} is not in constraints.txt"
            assert requirement.specifier.contains(versions[name], prereleases=True), f"{requirement}: {versions[name]}"
        waiting += needs(requirement)


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_pip_resolves_each_extra_with_the_constraints(extra, tmp_path):
    """Each package has its exact version there. Needs the registry, and downloads descriptions only."""
    report = tmp_path / "report.json"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        str(report),
    ]
    done = subprocess.run(
        [*pip, "-c", str(ROOT / "constraints.txt"), f"{ROOT}[{extra}]"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    chosen = [one["metadata"] for one in json.loads(report.read_text(encoding="utf-8"))["install"]]
    versions = {canonicalize_name(one["name"]): one["version"] for one in chosen}
    assert versions.pop(OURS) == PROJECT["version"]
    assert versions.items() <= pins().items(), dict(versions.items() - pins().items())
