"""The bundled GPT continues a text: with a cache, on any backend, and the same each time."""

from refattn.models.gpt import GPT

gpt = GPT.bundled()
prompt = '    """Return the '

likeliest = gpt.generate(prompt, tokens=80)
print(prompt + likeliest)

drawn = gpt.generate(prompt, tokens=80, temperature=0.8, top_k=20, seed=1)
print(prompt + drawn)

whole = gpt.logits(gpt.encode(prompt + likeliest))  # (T, V): one pass over all, without a cache
expected = gpt.decode(whole[len(prompt) - 1 : -1].argmax(axis=-1))
assert likeliest == expected
assert drawn == gpt.generate(prompt, tokens=80, temperature=0.8, top_k=20, seed=1)
