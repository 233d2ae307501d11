"""Time the linear-time family on the CPU beside what transformers and flash-linear-attention do in plain torch.

    python tests/benchmarks/linear_family.py --fla CHECKOUT --out docs/results/linear_family

Opponents: the functions that transformers (in the extra `peers`) runs where no kernel is installed, and the files
`naive.py` of a checkout of fla-org/flash-linear-attention, of which only those files are loaded (they need einops).
Whatever has no opponent here is timed by itself. Each result is first checked against the reference in float64, ours
and theirs. Then ours and theirs take turns; a ratio is the median over the rounds, with its quartiles. "Rate" counts
the multiplications and additions of the recurrence itself (FLOPS) against the rate of a matrix product of NumPy's BLAS
that is timed in the same rounds. With --backward, the gradients of all inputs are timed instead (theirs by autograd,
its forward pass included; ours the vjp, which includes its own).
"""

import argparse
import importlib.util
import json
import time
import warnings
from pathlib import Path

import numpy as np

import refattn
from refattn.costs.machine import facts

B, H, D = 1, 8, 64
E, N, HEADS_SSD, P = 512, 16, 8, 64
REST = 0.04  # seconds before each timed call: the threads of BLAS and OpenMP keep a core busy after their work
LEAST = 5  # rounds


def draw(T):
    """Return the inputs that every operation takes its own from."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    unit = normal(B, H, T, D)
    return {
        "q": normal(B, H, T, D),
        "k": normal(B, H, T, D),
        "v": normal(B, H, T, D),
        "unit": unit / np.linalg.norm(unit, axis=-1, keepdims=True),
        "g": -0.1 * np.exp(normal(B, H, T)),
        "gk": -0.1 * np.exp(normal(B, H, T, D)),
        "beta": 1 / (1 + np.exp(-normal(B, H, T))),
        "a": 1 / (1 + np.exp(-normal(B, H, T, D))),
        "bonus": normal(H, D),
        "u": normal(B, T, E),
        "delta": 0.2 * np.exp(0.5 * normal(B, T, E)),
        "A": -np.exp(0.5 * normal(E, N)),
        "B": normal(B, T, N),
        "C": normal(B, T, N),
        "dt": 0.2 * np.exp(0.5 * normal(B, HEADS_SSD, T)),
        "A1": -np.exp(0.5 * normal(HEADS_SSD)),
        "B1": normal(B, 1, T, N * 4),
        "C1": normal(B, 1, T, N * 4),
        "w": 0.3 * np.exp(normal(E)),
        "ke": normal(B, T, E),
        "ve": normal(B, T, E),
    }


STEP = H * D * D * B  # elements of all states
FLOPS = {  # per token: read 2, write 2, decay 1, what the erasing reads 2 and writes 2 more, per element of the state
    "linear_attention": 4 * STEP,
    "retention": 5 * STEP,
    "simple_gla": 5 * STEP,
    "gated_linear_attention": 5 * STEP,
    "delta_rule": 6 * STEP,
    "gated_delta_rule": 7 * STEP,
    "kda": 7 * STEP,
    "rwkv6": 5 * STEP,
    "rwkv7": 9 * STEP,
    "ssd": 5 * B * HEADS_SSD * P * N * 4,
    "selective_scan": 7 * B * E * N,  # the product with A and the exponential are counted as one each
    "rwkv4": 14 * B * E,
}
ARGUMENTS = {
    "linear_attention": ("q", "k", "v"),
    "retention": ("q", "k", "v"),
    "simple_gla": ("q", "k", "v", "g"),
    "gated_linear_attention": ("q", "k", "v", "gk"),
    "delta_rule": ("q", "unit", "v", "beta"),
    "gated_delta_rule": ("q", "unit", "v", "g", "beta"),
    "kda": ("q", "unit", "v", "gk", "beta"),
    "rwkv6": ("q", "k", "v", "gk", "bonus"),
    "rwkv7": ("q", "k", "v", "gk", "unit", "a"),
    "ssd": ("v", "dt", "A1", "B1", "C1"),
    "selective_scan": ("u", "delta", "A", "B", "C"),
    "rwkv4": ("w", "w", "ke", "ve"),
}


def arguments(name, x):
    given = [x[key] for key in ARGUMENTS[name]]
    return [*given, refattn.retention_log_decay(H).astype(np.float32)] if name == "retention" else given


def opponents(fla):
    """Return {operation: (who, f)}; f takes the torch tensors of our layout and returns o in our layout."""
    import torch

    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
        from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule
        from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    swap = lambda *xs: [x.transpose(1, 2) for x in xs]  # noqa: E731

    def gated_delta(q, k, v, g, beta):
        return torch_chunk_gated_delta_rule(*swap(q, k, v, g, beta))[0].transpose(1, 2)

    def kda(q, k, v, g, beta):
        return chunk_kimi_delta_attention(*swap(q, k, v, g, beta))[0].transpose(1, 2)

    def ssd(x, dt, A, b, c):
        result = mamba2_chunk_scan(*swap(x, dt), A, *swap(b, c), chunk_size=256)
        return (result[0] if isinstance(result, tuple) else result).transpose(1, 2)

    def scan(u, delta, A, b, c):
        result = mamba_selective_scan(*swap(u, delta), A, *swap(b, c))
        return (result[0] if isinstance(result, tuple) else result).transpose(1, 2)

    def rwkv4(w, u, k, v):
        return rwkv_linear_attention_cpu(torch.log(w), u, k, v)[0]

    for name, function in (
        ("gated_delta_rule", gated_delta),
        ("kda", kda),
        ("ssd", ssd),
        ("selective_scan", scan),
        ("rwkv4", rwkv4),
    ):
        found[name] = ("transformers", function)
    if fla is None:
        return found

    def load(file):
        spec = importlib.util.spec_from_file_location(Path(file).stem, fla / "fla" / "ops" / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    elu = lambda x: torch.nn.functional.elu(x) + 1  # noqa: E731
    linear, retention = load("linear_attn/naive.py"), load("retention/naive.py")
    simple, gla, delta = load("simple_gla/naive.py"), load("gla/naive.py"), load("delta_rule/naive.py")
    rwkv6, dplr = load("rwkv6/recurrent_naive.py"), load("generalized_delta_rule/dplr/naive.py")
    found["linear_attention"] = (
        "fla",
        lambda q, k, v: linear.naive_chunk_linear_attn(*swap(elu(q), elu(k), v), normalize=True).transpose(1, 2),
    )
    found["retention"] = ("fla", lambda q, k, v, g: retention.naive_retention(q, k, v))
    found["simple_gla"] = (
        "fla",
        lambda q, k, v, g: simple.naive_chunk_simple_gla(*swap(q, k, v, g))[0].transpose(1, 2),
    )
    found["gated_linear_attention"] = (
        "fla",
        lambda q, k, v, g: gla.naive_recurrent_gla(*swap(q, k, v, g))[0].transpose(1, 2),
    )
    found["delta_rule"] = ("fla", lambda q, k, v, beta: delta.delta_rule_chunkwise(q, k, v, beta)[0])
    found["rwkv6"] = ("fla", lambda *x: rwkv6.naive_recurrent_rwkv6(*x, scale=1.0)[0])
    found["rwkv7"] = (
        "fla",
        lambda r, k, v, g, kappa, a: dplr.dplr_chunkwise(r * D**0.5, k, v, kappa, -a * kappa, g)[0],
    )
    return found


def ours(name, given):
    """Return calls of the operation on the backend: forward, and all gradients."""
    function = getattr(refattn, name)
    back = getattr(refattn, f"{name}_vjp")
    do = np.ones_like(function(*given, backend="numba").o)
    return lambda: function(*given, backend="numba").o, lambda: back(do, *given, backend="numba")


def theirs(function, given):
    import torch

    leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in given]

    def forward():
        with torch.no_grad():
            return function(*leaves).numpy()

    def backward():
        for x in leaves:
            x.grad = None
        function(*leaves).sum().backward()
        return [x.grad for x in leaves]

    return forward, backward


def check(who, o, name, given, T):
    """Raise unless the output of a run over fewer tokens is that of the reference in float64."""
    want = getattr(refattn, f"{name}_recurrent")(*(x.astype(np.float64) for x in given)).o
    error = np.abs(o - want).max() / np.abs(want).max()
    if not error < 1e-4:
        raise AssertionError(f"{name} of {who} is wrong by {error:.2g} of its largest value; not timed")
    return float(error)


def measure(found, seconds, rng):
    """Return {name: seconds per round}, in a fresh random order each round."""
    times = {name: [] for name in found}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < LEAST:
        for name in rng.permutation(list(found)):
            time.sleep(REST)
            start = time.perf_counter()
            found[name]()
            times[name].append(time.perf_counter() - start)
    return times


def quartiles(a, b, factor=1.0):
    return [float(x) for x in np.quantile([factor * x / y for x, y in zip(a, b, strict=True)], [0.25, 0.5, 0.75])]


def table(rows, machine, T, backward):
    what = "all gradients, the forward pass they need included" if backward else "forward"
    head = [
        f"# The linear-time family on the CPU: {what}",
        "",
        f"T = {T:,}, B = {B}, H = {H}, D = Dv = {D} (selective_scan and rwkv4: {E} channels, N = {N}; ssd: {HEADS_SSD} "
        f"heads of {P}, N = {N * 4}), float32, numba backend, beside plain torch on the same threads.",
        "",
        "| operation | ours | theirs | times faster | of sgemm's rate | error ours / theirs |",
        "|---|---|---|---|---|---|",
    ]
    lines = []
    for row in rows:
        other = "none here" if row["theirs"] is None else f"{row['who']}, {row['theirs'] * 1e3:.1f} ms"
        faster = "" if row["faster"] is None else "{1:.1f} ({0:.1f}-{2:.1f})".format(*row["faster"])
        rate = "{:.0f} %".format(100 * row["rate"][1])
        error = " / ".join(f"{x:.0e}" for x in row["errors"])
        lines.append(f"| {row['name']} | {row['ours'] * 1e3:.1f} ms | {other} | {faster} | {rate} | {error} |")
    return "\n".join([*head, *lines, "", machine, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="per operation")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--fla", type=Path, help="a checkout of flash-linear-attention")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(ARGUMENTS))
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    T, rows, rng = options.tokens, [], np.random.default_rng(0)
    x, few = draw(T), draw(128)
    others = opponents(options.fla)
    a = rng.standard_normal((1024, 1024)).astype(np.float32)
    for name in options.only:
        given, short = arguments(name, x), arguments(name, few)
        found = {"ours": ours(name, given)[options.backward], "sgemm": lambda: a @ a}
        errors = [check("ours", ours(name, short)[0](), name, short, 128)]
        who = None
        if name in others and not (name == "retention" and T > 4096):
            who, function = others[name]
            if name != "retention":  # whose decays fla fixes to others than ours: the same work
                errors.append(check(who, theirs(function, short)[0](), name, short, 128))
            found["theirs"] = theirs(function, given)[options.backward]
        for run in found.values():
            run()
        times = measure(found, options.seconds, rng)
        flops = FLOPS[name] * T * (3 if options.backward else 1)
        row = {
            "name": name,
            "who": who,
            "ours": float(np.median(times["ours"])),
            "theirs": float(np.median(times["theirs"])) if who else None,
            "faster": quartiles(times["theirs"], times["ours"]) if who else None,
            "rate": quartiles(times["sgemm"], times["ours"], flops / (2 * 1024**3)),
            "errors": errors,
            "seconds": times,
        }
        rows.append(row)
        print(table(rows[-1:], "", T, options.backward).splitlines()[6], flush=True)
    machine = "; ".join(facts(["numba", "torch", "transformers"]).values()) + f"; {options.seconds:g} s an operation."
    if options.fla:
        machine += " flash-linear-attention: the files naive.py of a checkout."
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(rows, machine, T, options.backward))
    print("\n" + table(rows, machine, T, options.backward))


if __name__ == "__main__":
    main()
