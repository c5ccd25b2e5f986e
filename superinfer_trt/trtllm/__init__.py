"""Rotation inside TensorRT-LLM: it owns the loop and the blocks, we plan and move."""
