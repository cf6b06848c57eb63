"""open_clip's side of ``gpu.py``: blocks compiled by torch.compile, bfloat16 autocast, fused AdamW."""

import argparse
import importlib
import json
import sys
import time
from typing import Any

from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.presets import preset

torch: Any = importlib.import_module("torch")
open_clip: Any = importlib.import_module("open_clip")


def main() -> None:
    options = parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    if not options.eager:
        compile_blocks(options, device)
    print("READY", flush=True)
    end = time.monotonic() + float(sys.stdin.readline())
    batch, is_growing = options.start, True
    while True:
        since = time.monotonic()
        try:
            seconds, memory = measure(options, batch, device)
        except torch.OutOfMemoryError:
            batch, is_growing = batch // 2, False
            if batch < 1:
                raise
            _release(device)
            continue
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        row = {
            "batch": batch,
            "seconds": seconds,
            "memory": memory,
            "note": f"{'eager' if options.eager else 'blocks compiled'}, recomputed {options.recompute}",
            "peak": 0.0,
            "device": f"{name}, torch {torch.__version__}",
        }
        print("ROW " + json.dumps(row), flush=True)
        took = time.monotonic() - since
        total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        is_room = 2 * batch <= options.most and (total is None or 1.8 * memory < total)
        # Compiling for another batch takes longer than the first measurement, whose blocks were compiled before.
        if not (is_growing and is_room):
            return
        if time.monotonic() + took + 30 >= end:
            print("ROW " + json.dumps({**row, "note": f"{row['note']}, larger batches not tried"}), flush=True)
            return
        batch *= 2
        _release(device)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="Ti/16")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--start", type=int, default=64, help="batch of the first try")
    parser.add_argument("--most", type=int, default=2**16, help="largest batch")
    parser.add_argument("--recompute", choices=("none", "image", "both"), default="none")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    return parser.parse_args()


def measure(options: argparse.Namespace, batch: int, device: Any) -> tuple[float, int]:
    """Seconds of a step, and peak memory in bytes."""
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = make_model(options, device)
    loss_of = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.2, fused=True)
    size = options.image_size
    images = torch.randn(batch, 3, size, size, device=device)
    tokens = torch.randint(0, 32000, (batch, options.length), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            image, text, scale = model(images, tokens)
            loss = loss_of(image, text, scale)
        loss.backward()
        optimizer.step()

    _timed(step, device, steps=2)
    once = _timed(step, device, steps=2)
    seconds = _timed(step, device, steps=max(3, min(50, int(2.0 / once))))
    return seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def compile_blocks(options: argparse.Namespace, device: Any) -> None:
    """Compile one block of each tower for the batch of the first try; the others share its program."""
    model = make_model(options, device, depth=1)
    config = preset(options.preset, image_size=options.image_size, length=options.length)
    towers = ((model.visual.transformer, config.image.visible), (model.transformer, config.text.length))
    for transformer, tokens in towers:
        x = torch.randn(options.start, tokens, transformer.width, device=device, requires_grad=True)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = transformer(x)
        out.float().sum().backward()
    del model
    _release(device)


def make_model(options: argparse.Namespace, device: Any, *, depth: int | None = None) -> Any:
    """Our preset as an open_clip model: same widths, depths, tokens and pooling, no causal mask."""
    ours = preset(options.preset, image_size=options.image_size, length=options.length)
    image, text = ours.image.blocks, ours.text.blocks
    vision = {
        "image_size": options.image_size,
        "patch_size": ours.image.patch_size[0],
        "layers": depth or image.depth,
        "width": image.width,
        "head_width": image.width // image.heads,
        "mlp_ratio": _ratio(image),
        "no_ln_pre": True,
        "pool_type": "avg",
        "final_ln_after_pool": True,
    }
    words = {
        "context_length": options.length,
        "vocab_size": ours.text.vocab,
        "layers": depth or text.depth,
        "width": text.width,
        "heads": text.heads,
        "mlp_ratio": _ratio(text),
        "pool_type": "last",
        "no_causal_mask": True,
    }
    with torch.device(device):
        model = open_clip.CLIP(ours.image.output, vision, words)
    if options.recompute in ("image", "both"):
        model.visual.set_grad_checkpointing(True)
    if options.recompute == "both":
        model.transformer.grad_checkpointing = True
    if not options.eager:
        # The blocks of a tower share one compiled program; compiling the complete model takes minutes.
        for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
            block.compile()
    return model


def _ratio(blocks: BlockConfig) -> float:
    return blocks.mlp_dim / blocks.width


def _timed(step: Any, device: Any, *, steps: int) -> float:
    since = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - since) / steps


def _release(device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
