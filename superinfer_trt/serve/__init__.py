"""The gRPC executor service."""
