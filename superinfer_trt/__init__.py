"""SuperInfer-TRT: SLO-aware rotation of requests between HBM and DRAM.

Importing the package is light: no numpy, grpc, torch or tensorrt_llm is loaded by it.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("superinfer-trt")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
