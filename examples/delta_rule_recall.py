"""A phone book that changes: the delta rule replaces a number, a sum of outer products mixes the old with the new."""

import numpy as np

import refattn

rng = np.random.default_rng(0)
people, entries = 16, 200
names = np.linalg.qr(rng.normal(size=(people, people)))[0]  # one unit vector each, at right angles
who = rng.integers(0, people, entries)  # many entries a person: only the last one counts
numbers = rng.integers(0, 10, size=(entries, 7)).astype(float)

# Write everything, then ask for everyone: a query is a token with beta 0.
k = np.concatenate([names[who], names])
v = np.concatenate([numbers, np.zeros((people, 7))])
beta = np.concatenate([np.ones(entries), np.zeros(people)])
o, state = refattn.delta_rule_chunked(k, k, v, beta, scale=1.0)
book = o[-people:]

last = np.stack([numbers[who == person][-1] for person in range(people)])
summed = refattn.simple_gla_chunked(k, k, v, np.zeros(len(k)), scale=1.0).o[-people:]
print("digits recalled by the delta rule:", np.mean(np.round(book) == last), "and by a sum:", np.mean(summed == last))
assert abs(book - last).max() < 1e-12 and abs(summed - last).max() > 10

# A call later, from the state alone, and one entry more:
o, state = refattn.delta_rule_recurrent(names[:1], names[:1], np.full((1, 7), 3.0), np.ones(1), initial_state=state)
assert abs(names[0] @ state - 3).max() < 1e-12 and abs(names[1:] @ state - last[1:]).max() < 1e-12
