"""Where code runs: device, processes, clock, memory, precision switches."""
