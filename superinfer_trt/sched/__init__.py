"""Policies: pure functions from a View to a Plan. They know nothing of slots, tensors or time sources."""
