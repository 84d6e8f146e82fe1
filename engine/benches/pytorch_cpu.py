"""Image encoder and fine-tuning step of the base model in PyTorch on the CPU: what `engine bench` is compared with.

    pip install torch numpy
    python pytorch_cpu.py [--threads 2] [--batch 8] [--repeats 5] [--only encoder|train] [--precision bf16]

Prints JSON: medians and minima in seconds, peak resident memory in GB so far. Run each part in a process of its own
(`--only`) to compare memory.
"""

import argparse
import json
import resource
import statistics
import time

import torch

from pytorch_model import VOCABULARY, Model, optimizer


def timed(repeats, work):
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "peak_memory_gb": round(peak, 2)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["encoder", "train"])
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="bf16: autocast, f32 master weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = Model(arguments.image_size)
    image = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size)
    ids = torch.randint(0, VOCABULARY, (arguments.batch, 40))
    mask = torch.ones(arguments.batch, 40)
    mask[:, 14:] = 0
    report = {"torch": torch.__version__, "threads": arguments.threads, "batch": arguments.batch}
    report |= {"image_size": arguments.image_size, "precision": arguments.precision}

    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.precision == "bf16")

    if arguments.only != "train":
        model.eval()
        with torch.inference_mode(), autocast():
            report["image_encoder"] = timed(arguments.repeats, lambda: model.encode_image(image))

    if arguments.only != "encoder":
        model.train()
        adamw = optimizer(model)

        def step():
            with autocast():
                loss = model.irtr_loss(image, ids, mask)
            loss.backward()
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            return loss.item()

        report["irtr_step"] = timed(arguments.repeats, step)

    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
