"""Random damage to bytes, for tests of hostile files."""


def mutate(data, rng):
    """Copy the bytes with one to eight of them changed, cut or inserted."""
    data = bytearray(data)
    match rng.integers(4):
        case 0:
            return bytes(data[: rng.integers(len(data))])
        case 1:
            at = rng.integers(len(data) + 1)
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        case 2:
            at = int(rng.integers(len(data)))
            del data[at : at + int(rng.integers(1, 9))]
        case _:
            for _ in range(rng.integers(1, 9)):
                data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)
