"""The composition root: how the parts are put together; the only place that knows them all.

A file for each whole: `service` over an embedded engine, `llm` over TensorRT-LLM or any engine, `trtllm`
inside a worker of it, `ranks` above 0, a model of `triton`, simulations (`sim`), worlds of faults (`chaos`).
Nothing is imported here, so that each costs only what it needs.
"""
