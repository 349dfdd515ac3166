"""Success: chains, single tasks, sweeps, experts."""
