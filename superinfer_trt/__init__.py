"""SuperInfer-TRT: SLO-aware rotation of requests between HBM and DRAM.

Importing the package is light: no numpy, grpc, torch or tensorrt_llm is loaded by it, and the version is
looked up when somebody asks.
"""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("superinfer-trt")
    except PackageNotFoundError:  # a source tree on the path, not installed
        found = "0.0.0+source"
    globals()[name] = found
    return found
