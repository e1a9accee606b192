"""Evaluation: what a frozen encoder's features, and its projector's embeddings, are worth.

    un-augmented images ─▶ embed ─▶ Features of train and test ─▶ knn, linear, few_shot,
                                                                  retrieval (labels),
                                                                  multi_label, category_retrieval
    edited copies, references ─▶ embed ─▶ Features of both ─▶ copy_detection (ids)
    views of held-out images ─▶ encoder ─▶ projector ─▶ z [V, A, D] ─▶ retrieval (views), geometry,
                                                                       rank_me, lidar

To add an evaluation, write `evaluation/my_metric.py` with a function `run` that takes Features
(train and test, or test alone) or z [V, A, D] and returns {name: float}, call it in
`evaluation/suite.py`, which runs them all, and enter its names in `evaluation/figures.py`, which
tables take them from. Names begin with the file's word ("knn_top1"), so that they stay unique in
metrics.jsonl. The test set may be used to report, never to choose anything.
"""

from evaluation import category_retrieval as category_retrieval
from evaluation import copy_detection as copy_detection
from evaluation import features as features
from evaluation import few_shot as few_shot
from evaluation import geometry as geometry
from evaluation import knn as knn
from evaluation import lidar as lidar
from evaluation import linear as linear
from evaluation import multi_label as multi_label
from evaluation import rank_me as rank_me
from evaluation import retrieval as retrieval
from evaluation.features import Features as Features
from evaluation.features import embed as embed
