"""Graph passes: each takes a model, changes it in place, checks what it promises and says how much it changed."""
