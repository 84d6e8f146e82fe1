"""Compares `vlmerge soup|slerp|ties|dare` with mergekit on made-up checkpoints, tensor by tensor.

    pip install mergekit && python merge-cli/tests/against_mergekit.py target/release/vlmerge

The Rust tests don't run this; what it printed once stands in the methods' documentation.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.registry import get
from safetensors.torch import load_file, save_file

SHAPES = {"scale": (), "bias": (768,), "matrix": (512, 768), "embedding": (3000, 768), "kernel": (64, 3, 16, 16)}


def checkpoints(dtype, count):
    """A base and models near it, whose vectors have half of their variance in common."""
    generator = torch.Generator().manual_seed(0)

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = {name: 0.02 * normal(shape) for name, shape in SHAPES.items()}
    shared = {name: normal(shape) for name, shape in SHAPES.items()}
    models = [{n: w + 0.01 * (normal(w.shape) + shared[n]) for n, w in base.items()} for _ in range(count)]
    return [{name: tensor.to(dtype) for name, tensor in model.items()} for model in [base, *models]]


def mergekits(method, models, base_index=0, **parameters):
    """What mergekit makes of models."""
    groups = [TensorGroup.from_tensors([model[name] for model in models], base_index=base_index) for name in SHAPES]
    return dict(zip(SHAPES, get(method)(groups, parameters=parameters)))


def main(vlmerge):
    folder = Path(tempfile.mkdtemp())
    files = [str(folder / f"{number}.safetensors") for number in range(4)]

    def ours(*args):
        out = folder / "out.safetensors"
        command = [vlmerge, "-q", *map(str, args), "-o", str(out), "--force"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return load_file(out)

    def saved(dtype):
        models = checkpoints(dtype, 3)
        for file, model in zip(files, models):
            save_file(model, file)
        return models

    def report(what, found, expected):
        worst, relative, same, elements = 0.0, 0.0, 0, 0
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            apart = (found[name].double() - tensor.double()).abs()
            worst = max(worst, apart.max().item())
            relative = max(relative, (apart.max() / tensor.double().abs().max()).item())
            same += (apart == 0).sum().item()
            elements += apart.numel()
        print(f"{what:32} max abs {worst:.1e}, of the tensor's largest {relative:.1e}; equal {same / elements:.2%}")

    print(f"mergekit {version('mergekit')}, torch {torch.__version__}")
    for dtype in [torch.float32, torch.float64, torch.bfloat16, torch.float16]:
        print(dtype)
        models = saved(dtype)
        found = ours("soup", *files[1:], "--weights", "0.5,0.3,0.2")
        report("soup 0.5,0.3,0.2", found, mergekits("linear", models[1:], None, weight=[0.5, 0.3, 0.2]))
        for t in [0.3, 0.5]:
            found = ours("slerp", *files[:2], "--t", t)
            report(f"slerp t {t}", found, mergekits("slerp", models[:2], t=t))
        for density, scale in [(0.2, 1.0), (0.5, 0.7), (1.0, 1.0)]:
            found = ours("ties", *files, "--density", density, "--lambda", scale)
            expected = mergekits("ties", models, weight=1.0, density=density, **{"lambda": scale})
            report(f"ties density {density} lambda {scale}", found, expected)
        found = ours("dare", *files, "--density", 1, "--lambda", 0.5)
        report("dare density 1 lambda 0.5", found, mergekits("dare_linear", models, weight=1.0, **{"lambda": 0.5}))
        found = ours("dare", *files, "--density", 1, "--ties")
        report("dare --ties density 1", found, mergekits("dare_ties", models, weight=1.0, normalize=True))

    print("dare, whose random numbers are others: ours / mergekit's without its L1 rescaling")
    base, model = saved(torch.float32)[:2]
    for density in [0.1, 0.5]:
        found = ours("dare", *files[:2], "--density", density, "--seed", 1)
        torch.manual_seed(1)
        expected = mergekits("dare_linear", [base, model], weight=1.0, density=density, rescale=False)
        for name in ["embedding", "matrix"]:
            x, y, whole = (tensors[name].double() - base[name].double() for tensors in [found, expected, model])
            both = (x != 0) & (y != 0)
            kept = [(v != 0).double().mean().item() for v in (x, y)]
            # The projection of what is left on the whole vector: 1 in expectation.
            share = [((v * whole).sum() / (whole * whole).sum()).item() for v in (x, y / density)]
            apart = (x * density - y)[both].abs().max().item()
            print(
                f"density {density} {name:9}: kept {kept[0]:.4f} / {kept[1]:.4f}, by both {both.double().mean():.4f}; "
                f"projection {share[0]:.3f} / {share[1]:.3f}; max abs where both {apart:.1e}"
            )


if __name__ == "__main__":
    main(sys.argv[1])
