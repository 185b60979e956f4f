"""Pure decisions: no await, clock, randomness, environment, I/O or framework. Same input, same plan."""
