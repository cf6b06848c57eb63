"""open_clip's side of ``step.py`` on a CPU: float32, fused AdamW, the same sizes. A line of input asks for a step."""

import argparse
import importlib
import resource
import sys
import time
from typing import Any

from benchmarks.gpu_open_clip import make_model

torch: Any = importlib.import_module("torch")
open_clip: Any = importlib.import_module("open_clip")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    options.recompute, options.eager = "none", True
    model = make_model(options, torch.device("cpu"))
    loss_of = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.2, fused=True)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size)
    tokens = torch.randint(0, 32000, (options.batch, options.length))
    rate = product_rate()
    print(
        f"ready torch {torch.__version__}, open_clip {open_clip.__version__}, products {rate:.0f} GFLOP/s", flush=True
    )
    for _ in sys.stdin:
        since = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        image, text, scale = model(images, tokens)
        loss = loss_of(image, text, scale)
        loss.backward()
        optimizer.step()
        loss.item()
        print(time.perf_counter() - since, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)


def product_rate(side: int = 3072) -> float:
    """GFLOP/s of a product of square matrices, best of five."""
    matrix, seconds = torch.randn(side, side), []
    for _ in range(5):
        since = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - since)
    return 2e-9 * side**3 / min(seconds)


if __name__ == "__main__":
    main()
