"""Which of two sentences means the same? Run: python examples/embed_text.py FOLDER_OF_ALL_MINILM_L6_V2."""

import sys

from refattn.models.minilm import MiniLM


def main(folder: str) -> None:
    model = MiniLM.load(folder)
    texts = ["How do I bake bread?", "Baking a loaf at home", "The train leaves at noon"]
    vectors = model.embed(texts)  # (3, 384), each of length 1
    cosine = vectors @ vectors[0]  # a·b / |a||b|
    for text, similarity in zip(texts, cosine, strict=True):
        print(f"{similarity:6.3f}  {text}")
    assert cosine[1] > 2 * cosine[2]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
