"""The flag ``--mesh``: sizes of the axes of a mesh."""

from clipa_eqx.errors import ConfigError


def mesh_sizes(text: str) -> tuple[int, int, int]:
    """Sizes of the axes data, fsdp and tensor.

    >>> mesh_sizes("64x8x1")
    (64, 8, 1)

    Raises:
        ConfigError: not three numbers with ``x`` between them.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"--mesh is {text!r}; give the sizes of data, fsdp and tensor, such as 64x8x1")
    data, fsdp, tensor = map(int, parts)
    return data, fsdp, tensor
