"""Tells the classes of images, by the network that a run retrained.

python -m tools.predict RUN IMAGE...
"""

import sys
from pathlib import Path

import torch

import genotypes
import train
from extra import folders
from tools import common


def load_network(run):
    """The network in RUN/retrain/last.pt or RUN/last.pt, in evaluation mode, and the checkpoint.

    Of the checkpoint you will need "classes", "settings", and "statistics": mean and deviation of
    the training pixels / 255, per channel. ValueError if there is no checkpoint of a retrain.
    """
    path = Path(run, "retrain", "last.pt")
    state = train.load_checkpoint(path if path.exists() else Path(run, "last.pt"), "retrain")
    genotype = genotypes.load(state["settings"]["genotype"])
    network = train.make_network(genotype, state["settings"], len(state["classes"]))
    network.load_state_dict(state["network"])
    return network.eval(), state


@torch.no_grad()
def predict(run, images):
    """Tells the most probable class of every image, and its probability."""
    network, state = load_network(run)
    done, settings = len(state["rows"]), state["settings"]
    epochs, size, imagenet = map(settings.get, ("epochs", "image_size", "imagenet"))
    if done < epochs:
        train.say(f"the retrain is not finished: after epoch {done} of {epochs}", error=True)
    mean, deviation = torch.tensor(state["statistics"])

    def classify(name):
        pixels = folders.Files([name], size, None, imagenet)[0, 0]  # (size, size, 3)
        image = ((pixels / 255 - mean) / deviation).permute(2, 0, 1)
        probability, label = network(image[None])[0].softmax(1)[0].max(0)
        train.say(f"{name}  {state['classes'][label]}  {probability:.4f}")

    return common.each(classify, images)[1]


IMAGES = common.RUNS | dict(metavar="IMAGE", help="image files")
main = common.program("predict", predict, {"run": common.RUN, "images": IMAGES})

if __name__ == "__main__":
    sys.exit(main())
