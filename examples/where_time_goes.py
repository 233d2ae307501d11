"""Where does the time of the bundled GPT go, and what could a faster attention give? Inference and training apart."""

import refattn
from refattn.models.gpt import GPT
from refattn.watch.network import Network
from refattn.watch.profile import profile
from refattn.watch.verdict import limit


def main(seq=128, rounds=3):
    network = Network.from_gpt(GPT.bundled())
    backends = [name for name in refattn.backends() if name in ("numpy", "numba")]
    found = {}
    for phase in ("prefill", "decode", "train"):
        for backend in backends:
            result = found[phase, backend] = profile(network, seq=seq, phase=phase, backend=backend, rounds=rounds)
            times = ", ".join(f"{part.component} {part.share:.0%}" for part in result.parts if part.share > 0.05)
            print(f"{phase:8}{backend:6}{result.seconds * 1e3:8.2f} ms: {times}")
            print(f"{'':14}{result.verdict}")
    for (phase, _), result in found.items():
        share = result.attention_share[0]
        assert 0 < share < 1 < limit(share)
        assert abs(sum(part.share for part in result.parts) - 1) < 1e-9
        assert any(part.backward > 0 for part in result.parts) == (phase == "train")
    counted = {
        phase: sum(part.flops for part in found[phase, "numpy"].parts) for phase in ("prefill", "decode", "train")
    }
    assert counted["prefill"] == network.sizes.forward_flops(seq=seq)["total"]
    assert counted["decode"] < counted["prefill"] < counted["train"]
    return found


if __name__ == "__main__":
    main()
