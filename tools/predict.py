"""`train.py predict RUN IMAGE...`: the classes of images, by the network that a run retrained."""

from pathlib import Path

import torch

import genotypes
import rome
import train
from tools.folders import Files


def load_network(path: str | Path) -> tuple[rome.Network, dict]:
    """The network of a retrain's last.pt, to evaluate, and the checkpoint: its "classes", "settings", "statistics"."""
    state = train.load_checkpoint(Path(path), "retrain")
    cell = genotypes.load(state["settings"]["genotype"])
    network = train.build_network(cell, state["settings"], len(state["classes"]))
    network.load_state_dict(state["network"])
    return network.eval(), state


@torch.no_grad()
def predict(run: str, images: list[str]) -> None:
    """Prints the most probable class of every image, and its probability."""
    path = Path(run) / "retrain" / "last.pt"
    network, state = load_network(path if path.exists() else Path(run) / "last.pt")
    mean, deviation = torch.tensor(state["statistics"])
    files = Files(images, state["settings"], "test")
    for name in images:
        image = ((files.read(name).float() / 255 - mean) / deviation).permute(2, 0, 1)
        probability, label = network(image[None])[0].softmax(1)[0].max(0)
        print(f"{name}  {state['classes'][label]}  {probability:.4f}")
