"""Plan a chat service: how many conversations fit on one GPU, how fast they are, and which rate keeps a promise."""

from refattn.costs.hardware import hardware
from refattn.costs.presets import preset
from refattn.costs.serving import Slo, serve_plan
from refattn.costs.units import duration, three

PROMPTS, ANSWERS = "lognormal:median=2000,p95=6000,max=8192", "uniform:20..380"
PROMISED = Slo(ttft_p95=1.5, tpot_p95=0.06)


def plan(kv_dtype: str, rate: float):
    return serve_plan(
        preset("llama-3-8b"),
        on=hardware("l40s"),
        lengths=PROMPTS,
        output=ANSWERS,
        requests_per_second=rate,
        slo=PROMISED,
        kv_dtype=kv_dtype,
        efficiency=0.6,  # of the data sheet's rates
        requests=400,
        seeds=3,
    )


def main() -> None:
    plans = {dtype: plan(dtype, rate=2) for dtype in ("bfloat16", "float8")}
    for dtype, found in plans.items():
        ttft = found.simulated.ttft_p95
        print(f"{dtype}: {found.concurrency} requests of mean length fit; at 2 requests/s:")
        print(f"  95 % have their first token after {duration(ttft.value)} ({ttft.kind})")
        print(f"  {three(found.highest.value)} requests/s keep the promise ({found.highest.kind})")
        most = found.rows[-1]
        print(f"  {most.batch} at once: {most.tokens_per_second:,.0f} tokens/s ({found.kind}), by {most.bound_by}")
    print(plans["bfloat16"].verdict)
    wide, narrow = plans.values()
    assert abs(narrow.concurrency - 2 * wide.concurrency) <= 1  # half the bytes a token, the same room
    assert narrow.highest.value > wide.highest.value > 0


if __name__ == "__main__":
    main()
