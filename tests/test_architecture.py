"""Which module may import which: levels, the only homes of foreign frameworks, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clipa_eqx

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 350

# A module imports modules of lower levels or of its own. A new module gets its level here.
LEVELS = {
    0: "clipa_eqx.errors clipa_eqx.leaf_file clipa_eqx.trees clipa_eqx.precision clipa_eqx.data clipa_eqx.evals"
    " clipa_eqx.in_place clipa_eqx.models clipa_eqx.training",
    1: "clipa_eqx.durations clipa_eqx.json_config clipa_eqx.losses clipa_eqx.pixels clipa_eqx.schedules"
    " clipa_eqx.tokenizer clipa_eqx.tokenizer.normalise clipa_eqx.tokenizer.reduce clipa_eqx.tokenizer.train"
    " clipa_eqx.tokenizer.vocabulary clipa_eqx.tokenizer.wordpiece"
    " clipa_eqx.models.layers clipa_eqx.models.blocks clipa_eqx.models.embed clipa_eqx.models.pool"
    " clipa_eqx.data.affine clipa_eqx.data.array_record_reader clipa_eqx.data.array_record_writer"
    " clipa_eqx.data.augment clipa_eqx.data.colour clipa_eqx.data.crops clipa_eqx.data.decode"
    " clipa_eqx.data.eval_images clipa_eqx.data.fast_images clipa_eqx.data.manifest clipa_eqx.data.mixture"
    " clipa_eqx.data.open_shards clipa_eqx.data.pixel_values clipa_eqx.data.prefetch clipa_eqx.data.records"
    " clipa_eqx.data.resize clipa_eqx.data.worker_processes clipa_eqx.evals.prompts",
    2: "clipa_eqx.models.vision clipa_eqx.models.text clipa_eqx.models.clip clipa_eqx.models.presets clipa_eqx.optim"
    " clipa_eqx.data.stream clipa_eqx.data.transforms clipa_eqx.flops clipa_eqx.training.metrics"
    " clipa_eqx.training.health",
    3: "clipa_eqx.surgery clipa_eqx.sharding clipa_eqx.training.state clipa_eqx.training.step clipa_eqx.checkpoint"
    " clipa_eqx.artefact clipa_eqx.artefact_folder clipa_eqx.evals.encode clipa_eqx.evals.counting"
    " clipa_eqx.evals.zero_shot clipa_eqx.leaf_shapes clipa_eqx.optimiser_file",
    4: "clipa_eqx.experiment",
    5: "clipa_eqx.config_files clipa_eqx.cli clipa_eqx.training.continued clipa_eqx.training.inputs"
    " clipa_eqx.training.loop clipa_eqx.training.reporting clipa_eqx.training.run_folder"
    " clipa_eqx.training.start clipa_eqx.training.trackers",
    # The package's front imports everything, on first use.
    6: "clipa_eqx",
}
LEVEL = {module: level for level, modules in LEVELS.items() for module in modules.split()}
PROGRAMS = ("scripts", "configs", "conversion", "benchmarks")
TOP = 6

FRAMEWORKS = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "torch", "torchvision", "open_clip", "flax"}
DEVICE_LIBRARIES = {"jax", "equinox", "optax", "orbax"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(*folders: str) -> dict[str, Path]:
    return {module_name(path): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


LIBRARY = python_files("clipa_eqx")
MODULES = LIBRARY | python_files(*PROGRAMS)


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


def level(module: str) -> int:
    return TOP if module.split(".")[0] in PROGRAMS else LEVEL[module]


def upward_edges(module: str, names: set[str]) -> list[str]:
    return sorted(name for name in names if name in MODULES and level(name) > level(module))


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_every_module_has_a_level_and_every_level_names_a_module():
    assert set(LIBRARY) == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_no_import_goes_up(module):
    names = imported(tree(MODULES[module]))
    assert "a relative import" not in names
    assert not upward_edges(module, names)


def test_an_upward_import_would_be_seen():
    parsed = ast.parse("def later():\n    from clipa_eqx.training import loop\n")
    assert upward_edges("clipa_eqx.optim", imported(parsed)) == ["clipa_eqx.training.loop"]
    assert upward_edges("clipa_eqx.training.start", imported(parsed)) == []
    assert upward_edges("clipa_eqx.experiment", imported(ast.parse("import scripts.train"))) == ["scripts.train"]


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("conversion")])
def test_other_frameworks_are_imported_in_conversion_only(module):
    assert not roots(imported(tree(MODULES[module]))) & FRAMEWORKS


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


@pytest.mark.parametrize("module", MODULES)
def test_each_file_says_its_reason_first(module):
    assert ast.get_docstring(tree(MODULES[module]))


def test_no_file_is_longer_than_can_be_read():
    lines = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in (MODULES | python_files("tests")).items()
    }
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


@pytest.mark.parametrize("module", [name for name in LIBRARY if name != "clipa_eqx.cli"])
def test_the_library_logs_and_never_prints(module):
    calls = [node for node in ast.walk(tree(LIBRARY[module])) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
