"""The pure heart: values, rules and ports. Standard library only; no clock, thread, file or log."""
