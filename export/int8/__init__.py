"""int8: which products, what their inputs look like, what is folded before, how weights are rounded, where Q/DQ goes."""
