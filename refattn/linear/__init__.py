"""Attention in time linear in the number of tokens: a state S maps keys to values; one file a variant."""
