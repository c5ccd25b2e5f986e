"""Files of requests in OpenAI's Batch format, answered by any executor; see docs/batch.md."""
