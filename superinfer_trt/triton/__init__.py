"""A Triton model in front of an executor: TensorRT-LLM's tensors in and out, `superinfer.v1` behind them."""
