"""Imports: which room may import which, the only homes of foreign frameworks, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

import clipa_eqx

LONGEST_FILE = 350

# Rooms of the library, lowest floor first. A room imports rooms of lower floors only, so no two import each other.
# A room is a folder, or a file that is in no folder of its own.
FLOORS = (
    "cache_folder commands errors foreign_output huge_pages progress similar_flags",
    "agreement argument_parser buckets cli cluster data.images device_memory devices durations file_lock "
    "json_config json_files precision replacing tokenizer trees",
    "checksums config_flags data layerwise locks models schedules sharding",
    "ema evals flops losses optim",
    "surgery",
    "saved",
    "experiment reference_chain search",
    "config_files recipes reports",
    "training",
    "planning",
    "programs",
)
FLOOR = {f"clipa_eqx.{room}": floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
# The package's front resolves its names on first use; it may name any room and no room may import it.
FRONT = "clipa_eqx"
# Packages whose names are for users; they pass names on, and no other module does.
FRONTS = (FRONT, "clipa_eqx.surgery")

# Commands of conversion, and which others each may import. All of them may import the library.
MAY_IMPORT = {
    "conversion.weights": (),
    "conversion.flax_clipa": ("conversion.weights",),
    "conversion.t5x": ("conversion.weights", "conversion.flax_clipa"),
    "conversion.open_clip": ("conversion.weights",),
    "conversion.by_name": ("conversion.weights", "conversion.flax_clipa", "conversion.open_clip"),
    "conversion.compare": ("conversion.weights", "conversion.flax_clipa", "conversion.open_clip"),
    "conversion.export": ("conversion.weights", "conversion.open_clip"),
    "conversion.verify": ("conversion.weights",),
    "conversion.released": ("conversion.weights",),
    "conversion.records": (),
    "conversion.icons": (),
}
# The one way from the library up to the converters: a model by name that is not in the cache yet is converted, on first
# use and only then. Users load models by name from the library, and the library reads folders without the converters.
WAY_UP = {"clipa_eqx.saved.by_name": {"conversion.by_name.names", "conversion.by_name.converting"}}
PROGRAMS = ("scripts", "configs", "benchmarks")
# Rooms of the library that may print.
PRINTERS = ("clipa_eqx.cli", "clipa_eqx.programs")

FRAMEWORKS = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "torch", "torchvision", "open_clip", "flax"}
# The only files that import another framework, and which one.
FRAMEWORK_HOMES = {
    "conversion.records.sources.tfrecords": {"tensorflow"},
    "conversion.open_clip.torch_file": {"torch"},
    "conversion.open_clip.adapter": {"torch"},
    "benchmarks.reference_input": {"tensorflow"},
    "benchmarks.gpu_open_clip": {"torch", "open_clip"},
    "benchmarks.step_open_clip": {"torch", "open_clip"},
}
DEVICE_LIBRARIES = {"jax", "equinox", "optax", "orbax"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(*folders: str) -> dict[str, Path]:
    return {module_name(path): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


LIBRARY = python_files("clipa_eqx")
MODULES = LIBRARY | python_files("conversion", *PROGRAMS)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(parsed: ast.AST) -> set[str]:
    """Full names of all imports, those inside of functions and those by ``import_module("name")`` too."""
    names: set[str] = set()
    for node in ast.walk(parsed):
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                full = {f"{module}.{alias.name}" for alias in node.names}
                names.update({name if name in MODULES else module for name in full})
            case ast.ImportFrom():
                names.add("a relative import")
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                names.add(name)
            case _:
                pass
    return names


def room(module: str) -> str:
    """The room of a module: ``clipa_eqx.data.images.crops`` is in ``clipa_eqx.data.images``."""
    known = [name for name in (*FLOOR, *MAY_IMPORT, *PROGRAMS) if module == name or module.startswith(f"{name}.")]
    return max(known, key=len, default=module)


def wrong_edges(module: str, names: set[str]) -> list[str]:
    """Imported modules of rooms that the room of ``module`` may not import."""
    here = room(module)
    names = names - WAY_UP.get(module, set())
    others = sorted(name for name in names if name in MODULES and room(name) != here)
    if here in PROGRAMS or here == FRONT:
        return []
    if here in MAY_IMPORT:
        return [name for name in others if room(name) not in (*FLOOR, *MAY_IMPORT[here])]
    return [name for name in others if FLOOR.get(room(name), len(FLOORS)) >= FLOOR[here]]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The first circle of a graph, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := visit(node, []))), [])


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_every_module_is_in_a_room_and_every_room_has_a_module():
    rooms = {room(module) for module in LIBRARY if module != FRONT}
    assert rooms == set(FLOOR)
    assert {room(module) for module in python_files("conversion") if module != "conversion"} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_they_may(module):
    names = imported(tree(MODULES[module]))
    assert "a relative import" not in names
    assert not wrong_edges(module, names)


def test_a_wrong_import_would_be_seen():
    parsed = imported(ast.parse("def later():\n    from clipa_eqx.training import loop\n"))
    assert wrong_edges("clipa_eqx.optim", parsed) == ["clipa_eqx.training.loop"]
    assert wrong_edges("clipa_eqx.training.start", parsed) == []
    assert wrong_edges("clipa_eqx.optim", imported(ast.parse("from clipa_eqx.evals import zero_shot"))) == [
        "clipa_eqx.evals.zero_shot"  # of the same floor
    ]
    assert wrong_edges("clipa_eqx.experiment", imported(ast.parse("import scripts.train"))) == ["scripts.train"]
    assert wrong_edges("clipa_eqx.saved.model", {"conversion.weights.rules"}) == ["conversion.weights.rules"]
    assert wrong_edges("conversion.open_clip.files", {"conversion.compare.walk"}) == ["conversion.compare.walk"]
    assert wrong_edges("conversion.t5x.importing", {"conversion.flax_clipa.names"}) == []


def test_no_files_import_each_other_in_a_circle():
    edges = {name: imported(tree(path)) & set(MODULES) for name, path in MODULES.items() if name != FRONT}
    assert circle(edges) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


@pytest.mark.parametrize("module", MODULES)
def test_other_frameworks_are_imported_at_their_homes_only(module):
    assert roots(imported(tree(MODULES[module]))) & FRAMEWORKS == FRAMEWORK_HOMES.get(module, set())


@pytest.mark.parametrize("module", [n for n in LIBRARY if n.startswith(("clipa_eqx.data", "clipa_eqx.tokenizer"))])
def test_what_worker_processes_import_is_free_of_jax(module):
    reached, waiting = {module}, [module]
    while waiting:
        names = imported(tree(LIBRARY[waiting.pop()]))
        assert not roots(names) & DEVICE_LIBRARIES, f"{module} reaches {sorted(names)} by way of {sorted(reached)}"
        new = (names & set(LIBRARY)) - reached
        reached |= new
        waiting += sorted(new)


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("tensorflow", "torch", "orbax", "grain", "jax")
    code = f"import sys, clipa_eqx; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_public_name_resolves():
    for name in dir(clipa_eqx):
        assert getattr(clipa_eqx, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        clipa_eqx.no_such_name  # noqa: B018


def test_what_type_checkers_see_is_what_the_package_gives():
    front = tree(LIBRARY["clipa_eqx"])
    (guarded,) = [node for node in front.body if isinstance(node, ast.If)]
    seen = {alias.asname for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(dir(clipa_eqx))


def defined(parsed: ast.Module) -> set[str]:
    """Names that a module defines itself, at its top level."""
    names: set[str] = set()
    for node in parsed.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            case _:
                pass
    return names


def borrowed(parsed: ast.Module) -> list[str]:
    """Names that are imported from a module which itself imports them; only the fronts pass names on."""
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(parsed)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES and node.module not in FRONTS
        for alias in node.names
        if f"{node.module}.{alias.name}" not in MODULES and alias.name not in defined(tree(MODULES[node.module]))
    ]


@pytest.mark.parametrize("path", [*MODULES.values(), *python_files("tests").values()], ids=str)
def test_each_name_is_imported_from_the_module_that_defines_it(path):
    assert borrowed(tree(path)) == []


def test_a_borrowed_name_would_be_seen():
    parsed = ast.parse("from clipa_eqx.training.loop import ExperimentConfig, train\n")
    assert borrowed(parsed) == ["clipa_eqx.training.loop.ExperimentConfig"]


def test_each_public_name_has_one_module():
    homes = [node for node in tree(LIBRARY[FRONT]).body if isinstance(node, ast.If)]
    pairs = [
        (alias.name, node.module) for node in homes[0].body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert len({name for name, _ in pairs}) == len(pairs)


@pytest.mark.parametrize("module", MODULES)
def test_each_file_says_its_reason_first(module):
    assert ast.get_docstring(tree(MODULES[module]))


def test_no_file_is_longer_than_can_be_read():
    lines = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in (MODULES | python_files("tests")).items()
    }
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


@pytest.mark.parametrize("module", [name for name in LIBRARY if room(name) not in PRINTERS])
def test_the_library_logs_and_never_prints(module):
    calls = [node for node in ast.walk(tree(LIBRARY[module])) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
