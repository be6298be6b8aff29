"""A linear model on the pixels, to see what a network adds to it."""

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1.0  # added to the diagonal of the covariance of the standardised pixels, which is 1
SIDE = 32  # larger images are averaged down to it, which bounds the size of the equations


def pixels(images: Tensor) -> Tensor:
    """(N, values) in float64 from uint8 (N, H, W, 3)."""
    x = images.permute(0, 3, 1, 2).double()
    if max(x.shape[2:]) > SIDE:
        x = F.interpolate(x, (SIDE, SIDE), mode="area")
    return x.flatten(1)


def linear_accuracy(
    train_images: Tensor, train_labels: Tensor, test_images: Tensor, test_labels: Tensor, classes: int
) -> float:
    """Test accuracy in percent of ridge regression from pixels to one-hot labels.

    Images: uint8 (N, H, W, 3). With standardised pixels X and one-hot labels Y it solves (X'X / N + RIDGE) W = X'Y / N
    in float64; X'X is summed over chunks of 1,000 images.
    """
    n, chunks = len(train_images), train_images.split(1000)
    mean = sum(pixels(chunk).sum(0) for chunk in chunks) / n
    variance = sum((pixels(chunk) - mean).square().sum(0) for chunk in chunks) / n
    scale = variance.sqrt().clamp_min(1.0)  # a pixel that hardly changes stays small
    targets = F.one_hot(train_labels, classes).double()
    gram, moment, bias = RIDGE * torch.eye(len(mean), dtype=torch.float64), 0, targets.mean(0)
    for chunk, y in zip(chunks, targets.split(1000)):
        x = (pixels(chunk) - mean) / scale
        gram += x.T @ x / n
        moment += x.T @ y / n  # the mean of x is 0, so that the bias stays out of it
    weight, right = torch.linalg.solve(gram, moment), 0
    for chunk, labels in zip(test_images.split(1000), test_labels.split(1000)):
        scores = (pixels(chunk) - mean) / scale @ weight + bias
        right += (scores.argmax(1) == labels).sum().item()
    return 100 * right / len(test_labels)
