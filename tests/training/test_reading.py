"""A read that fails is called damage only if the files are the cause."""

import pytest

from clipa_eqx.errors import CheckpointError, DamageError
from clipa_eqx.training.damage import read_intact


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (ValueError("PERMISSION_DENIED: Error reading local file"), CheckpointError),
        (ValueError("RESOURCE_EXHAUSTED: Too many open files"), CheckpointError),
        (ValueError("DATA_LOSS: CRC-32C checksum verification failed"), DamageError),
        (MemoryError("no room"), MemoryError),
    ],
    ids=str,
)
def test_only_damage_is_called_damage_whatever_wraps_it(cause, expected, tmp_path):
    """Orbax wraps the error of a read into a bare Exception that does not repeat it."""

    def read():
        try:
            raise cause
        except (ValueError, MemoryError) as error:
            raise Exception("Encountered error while reading") from error

    with pytest.raises(expected, match=str(cause)) as found:
        read_intact(read, folder=tmp_path)
    assert type(found.value) is expected
