"""Calibration and evaluation data: whatever a user has, as batches of feeds for a model."""

from requant.data.dataset import Dataset, open_data
from requant.data.grouping import Batch
from requant.data.opening import holds_images
from requant.data.options import DataOptions, ImageOptions
from requant.data.spec import InputSpec

__all__ = ["Batch", "DataOptions", "Dataset", "ImageOptions", "InputSpec", "holds_images", "open_data"]
