"""Training throughput of the base model in PyTorch on a GPU, on the shapes of `engine bench train`'s presets.

    pip install torch numpy
    python pytorch_cuda.py [--preset irtr-coco-base-384] [--batch 64] [--precision bf16|f32] [--steps 20]

bf16 is autocast with f32 master weights; attention is `scaled_dot_product_attention`; AdamW is the fused one. Prints
one JSON object per preset. TFLOP/s counts three forward passes' matrix products a step (forward, and twice that
backward), so recomputation would not count.
"""

import argparse
import contextlib
import json
import statistics
import time

import torch

from pytorch_model import ANSWERS, VOCABULARY, Model, forward_flop, optimizer

PRESETS = {"irtr-coco-base-384": ("irtr", 384, 0.1), "vqa-base-480": ("vqa", 480, 0.15)}


def measure(preset, batch, precision, steps, compiled):
    task, size, drop_rate = PRESETS[preset]
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    model = Model(size, drop_rate=drop_rate).cuda().train()
    adamw = optimizer(model, fused=True)
    image = torch.randn(batch, 3, size, size, device="cuda")
    ids = torch.randint(0, VOCABULARY, (batch, 40), device="cuda")
    mask = torch.ones(batch, 40, device="cuda")
    mask[:, 14:] = 0
    targets = torch.rand(batch, ANSWERS, device="cuda")
    loss_of = (lambda: model.irtr_loss(image, ids, mask)) if task == "irtr" else (lambda: model.vqa_loss(image, ids, mask, targets))
    if compiled:
        loss_of = torch.compile(loss_of)
    context = torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def step():
        with context:
            loss = loss_of()
        loss.backward()
        # Parameters of the other task have no gradient; AdamW leaves them alone.
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    def seconds():
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(5):
        step()
    median = statistics.median(seconds() for _ in range(steps))
    return {
        "preset": preset,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "precision": precision,
        "compiled": compiled,
        "batch": batch,
        "step_s": median,
        "images_per_s": batch / median,
        "tflop_per_s": 3 * batch * forward_flop(task, size) / median / 1e12,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", choices=PRESETS, action="append", help="default: each")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of eager")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    for preset in arguments.preset or PRESETS:
        result = measure(preset, arguments.batch, arguments.precision, arguments.steps, arguments.compile)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
