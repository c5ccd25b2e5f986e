"""Model files: configurations, tensors, tokenizers, chat templates and the cache they live in."""
