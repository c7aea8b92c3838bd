"""Train with VICReg under Hugging Face's Accelerate, and log the loss's terms.

The loss is called as in any PyTorch training. `VICRegLoss.terms` returns the loss with its terms,
and `scalars` names them for `Accelerator.log`. Here a tracker of a few lines keeps them; give
`log_with="tensorboard"` or another in its place. The script also runs on several processes, where
`comm` makes the loss that of the whole batch. Needs PyTorch, Accelerate and scikit-learn, and
matplotlib for the picture:

    python examples/accelerate_digits.py --plot accelerate.svg
    torchrun --standalone --nproc-per-node 2 examples/accelerate_digits.py
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from vicreg.distributed import TorchCommunicator
from vicreg.torch import VICRegLoss

EPOCHS, BATCH, FEATURES = 25, 256, 32
WEIGHTS = {"invariance": 25, "variance": 25, "covariance": 1}  # the default


class Recorder(GeneralTracker):
    """A tracker for `Accelerator.log` that keeps what is logged."""

    name, requires_logging_directory, tracker = "recorder", False, None

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        super().__init__()

    def store_init_configuration(self, values: dict) -> None:
        pass

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        self.logged.append({"step": step, **values})


def train(recorder: Recorder) -> Accelerator:
    accelerator = Accelerator(cpu=True, log_with=recorder)
    accelerator.init_trackers("digits")
    set_seed(0, device_specific=True)  # other noise in each process
    images = torch.as_tensor(load_digits().data / 16, dtype=torch.float32)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, FEATURES))
    loader = DataLoader(images, BATCH // accelerator.num_processes, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    encoder, optimizer, loader = accelerator.prepare(encoder, optimizer, loader)

    comm = TorchCommunicator() if accelerator.num_processes > 1 else None
    criterion = VICRegLoss(comm=comm)
    step = 0
    for _ in range(EPOCHS):
        for batch in loader:
            x1, x2 = (batch + 0.2 * torch.randn_like(batch) for _ in range(2))
            terms = criterion.terms(encoder(x1), encoder(x2))
            optimizer.zero_grad()
            accelerator.backward(terms.loss)
            optimizer.step()
            accelerator.log(terms.scalars("train/"), step=step)
            step += 1
    return accelerator


def draw(steps: list[int], terms: dict[str, list[float]], file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 3.6))
    axes.plot(steps, [sum(of_step) for of_step in zip(*terms.values(), strict=True)], label="loss")
    for name, values in terms.items():
        axes.plot(steps, values, label=name)
    axes.set_title("The features spread: only the variance term falls")
    axes.set(xlabel="step", ylabel="term times its weight", ylim=(0, None))
    axes.legend()
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as accelerate.svg")
    file = parser.parse_args().plot
    recorder = Recorder()
    if not train(recorder).is_main_process:
        return
    logged = recorder.logged
    print(f"logged in each of {len(logged)} steps: {', '.join(logged[0])}")
    print("times its weight     first step   last step")
    terms = {}
    for name, weight in WEIGHTS.items():
        terms[name] = [weight * one[f"train/{name}"] for one in logged]
        print(f"{name:20} {terms[name][0]:10.3f} {terms[name][-1]:11.3f}")
    falling = [name for name, values in terms.items() if values[-1] < values[0]]
    assert falling == ["variance"], falling
    print("the features spread: the variance term falls, the two others rise a little")
    if file:
        draw([one["step"] for one in logged], terms, file)


if __name__ == "__main__":
    main()
