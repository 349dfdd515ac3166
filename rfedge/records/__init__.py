"""Results as documents: their base, statistics, and the machine they were measured on."""
