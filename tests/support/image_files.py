"""Image files made in tests."""

import io

import numpy as np
from PIL import Image


def encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Content of an image file of this kind; ``options`` are those of ``PIL.Image.Image.save``."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()
