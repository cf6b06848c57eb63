"""Random damage to bytes, for tests of hostile files."""

import json


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


def forget_hashes(model):
    """Make a model folder one without recorded SHA-256, so that its weights may be changed unnoticed."""
    path = model / "provenance.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    del found["leaves_sha256"]
    path.write_text(json.dumps(found), encoding="utf-8")
