"""RWKV-4 to RWKV-7, the recurrence of each; one file a variant."""
