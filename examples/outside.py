"""A shard set and an encoder outside viewrank: a linear classifier in plain PyTorch.

    python examples/outside.py runs/mine/encoder.safetensors data/own

The set is read by webdataset in the workers of a DataLoader, the encoder is a torch.nn.Module.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import viewrank


def main() -> None:
    """Train a linear layer on frozen features for some epochs, and print its accuracy on them."""
    parser = argparse.ArgumentParser(description="Train a linear layer on frozen features.")
    parser.add_argument("run", help="a run's folder, or its encoder.safetensors")
    parser.add_argument("shards", help="a shard set with classes")
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()

    encoder, prepare = viewrank.load(given.run)

    def prepared(sample: dict[str, Any]) -> tuple[Tensor, int]:
        return prepare(sample["image"]), sample["label"]

    images: Any = viewrank.as_webdataset(given.shards).map(prepared)
    with torch.inference_mode():
        batches = [(encoder(image), label) for image, label in DataLoader(images, batch_size=64)]
    h_NF = torch.cat([h_BF for h_BF, _ in batches]).clone()
    label_N = torch.cat([label_B for _, label_B in batches])

    layer = nn.Sequential(nn.BatchNorm1d(h_NF.shape[1]), nn.LazyLinear(int(label_N.max()) + 1))
    layer(h_NF)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for _ in range(given.epochs):
        for row_B in torch.randperm(len(h_NF)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(h_NF[row_B]), label_N[row_B]).backward()
            optimizer.step()
    right = (layer.eval()(h_NF).argmax(1) == label_N).float().mean()
    print(
        f"{len(h_NF)} images, {given.epochs} epochs: {right:.1%} of the training images are right"
    )


if __name__ == "__main__":
    main()
