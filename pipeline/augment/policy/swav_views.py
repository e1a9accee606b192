"""SwAV's augmentation, for its large and its small crops.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments", NeurIPS 2020, https://arxiv.org/abs/2006.09882;
`facebookresearch/swav`, src/multicropdataset.py. Two large crops of 224 px and six small ones of
96 are the paper's usual set.

Differs from the authors' code: theirs has a blur window of 23 for every size, and divides the first
channel by 0.228; ours divides it by 0.229, as everywhere else.
"""

from __future__ import annotations

from pipeline.augment.policy.simclr_views import SimCLRViews


class SwAVViews(SimCLRViews):
    """SwAV's crops with SimCLR's colours: areas 0.14..1, or 0.05..0.14 for the small crops.

    Caron et al. 2020, https://arxiv.org/abs/2006.09882.

    Args:
        small: the small crops of multi-crop, areas 0.05..0.14.
        blur_window: width of the blur's filter in pixels, odd; by default a tenth of the view's
            size; the authors' code has 23.
    """

    def __init__(self, *, small: bool = False, blur_window: int | None = None) -> None:
        super().__init__(area=(0.05, 0.14) if small else (0.14, 1.0), blur_window=blur_window)
