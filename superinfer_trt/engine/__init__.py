"""Model engines: what runs a batch."""
