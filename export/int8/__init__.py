"""int8: which MatMuls, what their inputs look like, what is folded before, how weights are rounded, where Q/DQ goes."""
