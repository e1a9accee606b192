"""An evaluation of one's own: how much a mirrored image changes an encoder's features.

    python examples/own_evaluation.py runs/mine/encoder.safetensors data/own --images 500

`viewrank.load` gives any trained encoder with the preparation that its evaluations use; a shard set
is a webdataset.WebDataset. What evaluates in every run instead is a file in evaluation/, see CONTRIBUTING.md.
"""

import argparse
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import ImageOps

import viewrank


def main() -> None:
    """Print the mean cosine of an image's features with those of its mirror image."""
    parser = argparse.ArgumentParser(description="Compare images with their mirror images.")
    parser.add_argument("run", help="a run's folder, or its encoder.safetensors")
    parser.add_argument("shards", help="a shard set")
    parser.add_argument("--images", type=int, default=500, help="how many")
    given = parser.parse_args()

    encoder, prepare = viewrank.load(given.run)
    images = [each["image"] for each in islice(viewrank.as_webdataset(given.shards), given.images)]
    with torch.inference_mode():
        h_NF = encoder(torch.stack([prepare(image) for image in images]))
        mirrored_NF = encoder(torch.stack([prepare(ImageOps.mirror(image)) for image in images]))
    same = F.cosine_similarity(h_NF, mirrored_NF).mean()
    other = F.cosine_similarity(h_NF, mirrored_NF.roll(1, 0)).mean()
    print(
        f"{len(images)} images: cosine with the own mirror image {same:.3f}, another's {other:.3f}"
    )


if __name__ == "__main__":
    main()
