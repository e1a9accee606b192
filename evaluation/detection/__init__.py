"""Detection: a detector that starts from an encoder is trained, and its boxes are scored.

    shard sets, folders of COCO or VOC ─▶ annotated_images ─▶ detection_set: drawn, padded batches
    encoder ─▶ detector (torchvision's) ─▶ detector_training ─▶ detections ─▶ box_precision

`detection_protocol.Detection` is its settings and its order; `tools.evaluate` runs it.
"""

from evaluation.detection.detection_protocol import Detection as Detection
