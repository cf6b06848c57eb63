"""The contrastive losses have the values and gradients of the reference's on 1 and on 8 devices.

The reference's temperature argument is exp(log_temperature), so its gradient times the temperature is ours. Its
gradients with respect to a device's slice passed the all-gather of n devices and are n times those of the global mean.
It rounds logits as large as the temperature before it subtracts them. Half a unit in their last place is more than 1e-5
of a small loss: recorded means differ from float64 by up to 3e-5. The comparison with the recording allows for that.
Our losses must also equal the definition in float64 up to the rounding of similarities, which are at most 1. The
reference's trainer never calls its sigmoid_xent and softmax_xent; this library has no counterpart.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import goldens
from support.meshes import mesh_of

from clipa_eqx.losses.softmax import local_softmax_contrastive, sharded_softmax_contrastive, softmax_contrastive

goldens.require("loss")

RTOL, EPSILON = 1e-5, 2.0**-23
GRADS = {"rtol": 1e-4, "atol": 1e-6}
FILES = {int(re.findall(r"(\d+)dev", name)[0]): name for name in goldens.names("loss/loss_*dev.npz")}
DEVICES = sorted(FILES)


def _load(devices):
    return goldens.load_npz(FILES[devices])


def _inputs(arrays, prefix=""):
    image, text = jnp.asarray(arrays[f"{prefix}zimg"]), jnp.asarray(arrays[f"{prefix}ztxt"])
    temperature = arrays.get(f"{prefix}t", arrays["t"]).reshape(())
    return image, text, jnp.log(jnp.asarray(temperature)), float(temperature)


def _exact(image, text, temperature):
    """Losses per pair by definition, in float64."""
    logits = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T * temperature
    rows, columns = (np.log(np.sum(np.exp(x - x.max(1, keepdims=True)), 1)) + x.max(1) for x in (logits, logits.T))
    return 0.5 * (rows + columns) - np.diag(logits)


def _check_loss(ours, recorded, exact, temperature):
    np.testing.assert_allclose(ours, exact, rtol=RTOL, atol=temperature * EPSILON / 4)
    np.testing.assert_allclose(ours, recorded, rtol=RTOL, atol=temperature * EPSILON / 2)


def _value_and_grad(loss, image, text, log_temperature):
    def scalar(image, text, log_temperature):
        out = loss(image, text, log_temperature=log_temperature)
        return out.loss, out

    return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))(image, text, log_temperature)


def _check(arrays, *, outputs, grads, inputs=""):
    image, text, log_temperature, temperature = _inputs(arrays, inputs)
    (loss, out), found = _value_and_grad(softmax_contrastive, image, text, log_temperature)
    _check_loss(loss, arrays[f"{outputs}loss"], _exact(image, text, temperature).mean(), temperature)
    assert float(out.accuracy) == float(arrays[f"{outputs}ncorrect"])
    np.testing.assert_allclose(found[0], arrays[f"{grads}grad_zimg"], **GRADS)
    np.testing.assert_allclose(found[1], arrays[f"{grads}grad_ztxt"], **GRADS)
    np.testing.assert_allclose(found[2] / temperature, arrays[f"{grads}grad_t"].reshape(()), **GRADS)


def _single():
    return next(arrays for arrays in map(_load, DEVICES) if "global/grad_t" in arrays)


def test_global_loss_gradients_and_hits_equal_the_plain_call():
    _check(_single(), outputs="global/reduction1/", grads="global/")


@pytest.mark.parametrize("size", sorted({n.split("/")[1] for n in _single() if n.startswith("sizes/")}, key=int))
def test_other_batch_sizes_equal_the_plain_call(size):
    _check(_single(), outputs=f"sizes/{size}/", grads=f"sizes/{size}/", inputs=f"sizes/{size}/")


def test_duplicated_rows_count_as_in_the_reference():
    _check(_single(), outputs="ties/", grads="ties/", inputs="ties/")


def test_losses_and_hits_per_pair_equal_the_unreduced_call():
    arrays = _single()
    image, text, log_temperature, temperature = _inputs(arrays)
    out = jax.jit(softmax_contrastive)(image, text, log_temperature=log_temperature)
    _check_loss(out.losses, arrays["global/reduction0/loss"], _exact(image, text, temperature), temperature)
    np.testing.assert_array_equal(out.correct, arrays["global/reduction0/ncorrect"])


def test_masked_pairs_are_neither_rows_nor_columns():
    arrays = _single()
    image, text, log_temperature, temperature = _inputs(arrays)
    mask = arrays["masked/mask"].astype(bool)
    exact = np.zeros(len(mask))
    exact[mask] = _exact(image[mask], text[mask], temperature)
    out = jax.jit(softmax_contrastive)(image, text, log_temperature=log_temperature, mask=jnp.asarray(mask))
    _check_loss(out.loss, arrays["masked/reduction1/loss"], exact[mask].mean(), temperature)
    assert float(out.accuracy) == float(arrays["masked/reduction1/ncorrect"])
    _check_loss(out.losses, arrays["masked/reduction0/loss"], exact, temperature)
    np.testing.assert_array_equal(out.correct, arrays["masked/reduction0/ncorrect"])


@pytest.mark.parametrize("devices", DEVICES)
def test_local_losses_equal_each_devices_own(devices):
    arrays = _load(devices)
    image, text, log_temperature, temperature = _inputs(arrays)

    def local(image, text, log_temperature):
        out = local_softmax_contrastive(image, text, log_temperature=log_temperature, axis_names=("data",))
        return out.loss[None], out.losses, out.correct

    split = PartitionSpec("data")
    means, losses, correct = jax.jit(
        jax.shard_map(local, mesh=mesh_of(data=devices), in_specs=(split, split, PartitionSpec()), out_specs=split)
    )(image, text, log_temperature)
    exact = _exact(image, text, temperature)
    recorded = arrays["pmap/local/unreduced_loss_per_device"]
    _check_loss(losses, recorded.reshape(-1), exact, temperature)
    _check_loss(means, arrays["pmap/local/loss_per_device"], exact.reshape(recorded.shape).mean(1), temperature)
    # The reference compares with the index inside the slice: its hits are right on the first device only.
    recorded = arrays["pmap/local/unreduced_ncorrect_per_device"]
    np.testing.assert_array_equal(correct[: recorded.shape[1]], recorded[0])


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("kind", ["local", "gathered_global"])
@pytest.mark.parametrize("form", ["sharded", "global"])
def test_gathered_losses_and_gradients_equal_the_reference(devices, kind, form):
    arrays = goldens.under(_load(devices), f"pmap/{kind}/")
    image, text, log_temperature, temperature = _inputs(_load(devices))
    loss = softmax_contrastive
    if form == "sharded":
        loss = functools.partial(sharded_softmax_contrastive, mesh=mesh_of(data=devices), axis_names=("data",))
    (value, _), grads = _value_and_grad(loss, image, text, log_temperature)
    _check_loss(value, arrays["loss_pmean"], _exact(image, text, temperature).mean(), temperature)
    for grad, name in zip(grads[:2], ("grad_zimg_per_device", "grad_ztxt_per_device"), strict=True):
        np.testing.assert_allclose(grad * devices, arrays[name].reshape(grad.shape), **GRADS)
    np.testing.assert_allclose(grads[2] / temperature, arrays["grad_t_pmean"].reshape(()), **GRADS)


@pytest.mark.parametrize("devices", DEVICES)
def test_hits_of_the_sharded_form_equal_the_gathered_ones_on_every_device(devices):
    image, text, log_temperature, _ = _inputs(_load(devices))
    form = functools.partial(sharded_softmax_contrastive, mesh=mesh_of(data=devices), axis_names=("data",))
    out = jax.jit(form)(image, text, log_temperature=log_temperature)
    for recorded in _load(devices)["pmap/gathered_global/ncorrect_per_device"]:
        assert float(out.accuracy) == float(recorded)


@pytest.mark.parametrize("devices", DEVICES)
def test_ungathered_losses_are_the_plain_loss_of_each_slice(devices):
    arrays = goldens.under(_load(devices), "pmap/perdevice/")
    image, text, log_temperature, temperature = _inputs(_load(devices))
    image, text = (x.reshape(devices, -1, x.shape[1]) for x in (image, text))
    one = jax.jit(functools.partial(_value_and_grad, softmax_contrastive))
    slices = [one(image[d], text[d], log_temperature) for d in range(devices)]
    exact = [_exact(image[d], text[d], temperature).mean() for d in range(devices)]
    for d, ((loss, out), grads) in enumerate(slices):
        _check_loss(loss, arrays["loss_per_device"][d], exact[d], temperature)
        assert float(out.accuracy) == float(arrays["ncorrect_per_device"][d])
        np.testing.assert_allclose(grads[0], arrays["grad_zimg_per_device"][d], **GRADS)
        np.testing.assert_allclose(grads[1], arrays["grad_ztxt_per_device"][d], **GRADS)
        np.testing.assert_allclose(grads[2] / temperature, arrays["grad_t_per_device"][d][0], **GRADS)
    mean = np.mean([loss for (loss, _), _ in slices])
    _check_loss(mean, arrays["loss_pmean"], np.mean(exact), temperature)
