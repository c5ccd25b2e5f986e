"""The production scheduler, ledger and executor in a modelled world: clock, link and engine replaced."""
