"""Names of the parts of a step in its compiled program, which traces and profiles show."""

import re

import jax
import pytest
from support.step_text import step_of
from support.tiny_models import tiny_clip_config

from clipa_eqx.precision import Precision
from clipa_eqx.sharding import MeshConfig, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def operations():
    """The names of the operations of a compiled step, each a path of scopes."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        step, arguments = step_of(tiny_clip_config(), Precision(), batch=16, mesh=mesh)
        return re.findall(r'op_name="([^"]*)"', step.lower(*arguments).compile().as_text())


@pytest.mark.parametrize("part", ["image_tower", "text_tower", "loss", "optimizer", "norms"])
def test_operations_of_a_compiled_step_name_their_part(operations, part):
    assert any(re.search(rf"\b{part}\b", name) for name in operations)


@pytest.mark.parametrize("part", ["image_tower", "text_tower", "loss"])
def test_the_backward_pass_names_its_part_too(operations, part):
    assert any(f"transpose(jvp({part}))" in name for name in operations)


def test_every_matrix_product_belongs_to_a_part(operations):
    products = [name for name in operations if name.endswith("dot_general")]
    assert products
    assert [name for name in products if not re.search(r"\b(image_tower|text_tower|loss)\b", name)] == []
