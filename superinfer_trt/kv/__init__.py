"""Slots, blocks and the ledger that owns them in both tiers."""
