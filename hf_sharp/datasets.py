"""Long-tail subsampling, and the data that recipes and tests use without a download."""

from hf_sharp.data.embedded import digits
from hf_sharp.data.idx import load_idx
from hf_sharp.data.loading import load, prepare_splits
from hf_sharp.data.long_tail import long_tail
from hf_sharp.data.split import split_validation

__all__ = ["digits", "load", "load_idx", "long_tail", "prepare_splits", "split_validation"]
