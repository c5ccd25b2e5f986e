"""The `superinfer-trt` command."""
