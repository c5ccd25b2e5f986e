"""The turn: roster, executor, doors, clock and driver."""
