"""Softmax attention. Read `attention` first; `flash` does the same in tiles; the rest builds on them."""
