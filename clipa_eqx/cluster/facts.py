"""Facts about a process that decide what its work gives, and how two processes differ in them."""

import functools
import hashlib
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

Facts = Mapping[str, str]
"""What is compared, by its name in messages."""


def facts_of_process(*packages: str) -> dict[str, str]:
    """The version of Python, the kind of processor, and a hash of the code of packages, which are ours.

    Args:
        packages: importable names, such as "clipa_eqx".
    """
    code = {f"the code of {package}": _hash_of_code(package) for package in packages}
    return {"Python": ".".join(map(str, sys.version_info[:2])), "the processor": platform.machine(), **code}


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of installed packages by name; "not installed" for the others."""
    return {package: _version(package) for package in packages}


def differences(here: Facts, there: Facts) -> list[str]:
    """Sentences about the facts in which another process differs from this one."""
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    return [f"{name} is {there.get(name, 'unknown')}, here {here.get(name, 'unknown')}" for name in names]


def both(first: Callable[[], Facts], second: Callable[[], Facts]) -> Facts:
    """The facts of two functions; with ``functools.partial`` a function of facts."""
    return {**first(), **second()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@functools.cache
def _hash_of_code(package: str) -> str:
    """The first digits of a hash over all Python files of a package."""
    spec = find_spec(package)
    found = hashlib.sha256()
    for folder in sorted((spec.submodule_search_locations or []) if spec else []):
        for path in sorted(Path(folder).rglob("*.py")):
            found.update(f"{path.relative_to(folder)}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:12]
