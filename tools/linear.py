"""A linear model on the pixels, to see what a network adds to it: ridge regression to one-hot labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pixels(images: Tensor) -> Tensor:
    """Float (N, values) from uint8 (N, H, W, 3); images larger than 32 pixels are averaged down, 1,000 at a time."""
    size = min(32, images.shape[1])
    chunks = images.permute(0, 3, 1, 2).split(1000)
    return torch.cat([F.adaptive_avg_pool2d(chunk.float(), size).flatten(1) for chunk in chunks])


def linear_accuracy(train_images, train_labels, test_images, test_labels, classes: int) -> float:
    """Test accuracy in percent. Images: uint8 (N, H, W, 3). With standardised X: (X'X + N) W = X'Y."""
    x, x_test, y = pixels(train_images), pixels(test_images), F.one_hot(train_labels, classes).float()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1.0)  # a pixel that hardly changes stays small
    x.sub_(mean).div_(deviation)
    weight = torch.linalg.solve(x.T @ x + len(x) * torch.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    scores = (x_test - mean) / deviation @ weight + y.mean(0)
    return 100 * (scores.argmax(1) == test_labels).double().mean().item()
