"""Mixed precision by evidence: which blocks are worth int8, measured by the action and this machine's clock."""
