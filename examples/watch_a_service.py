"""A service over HTTP that measures itself: requests from several clients at once, and what /metrics says of them."""

import json
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from refattn.watch.service import Service

REQUESTS, TOKENS = 6, 12


def ask(url: str, n: int) -> str:
    asked = {"prompt": "def attention(", "tokens": TOKENS, "temperature": 0.8, "seed": n}
    with urlopen(Request(url + "/generate", json.dumps(asked).encode())) as answer:
        return json.load(answer)["text"]


def scrape(url: str) -> dict:
    with urlopen(url + "/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(x.name, x.labels.get("phase"), x.labels.get("component")): x.value for f in families for x in f.samples}


def main() -> None:
    with Service(all_parts=True) as service:
        with ThreadPoolExecutor(3) as clients:
            texts = list(clients.map(lambda n: ask(service.url, n), range(REQUESTS)))
        found = scrape(service.url)
    for phase in ("prefill", "decode"):
        calls = found["refattn_sequence_length_count", phase, None]
        share, flops = (found[f"refattn_{name}", phase, None] for name in ("attention_time_ratio", "flops_total"))
        print(f"{phase}: {calls:.0f} calls, {flops / 1e6:.1f} MFLOP, attention is {share:.0%} of the time")
    print(f"one of the texts: {texts[0]!r}")
    assert found["refattn_sequence_length_count", "prefill", None] == REQUESTS
    assert found["refattn_component_seconds_count", "decode", "attention"] == REQUESTS * (TOKENS - 1)


if __name__ == "__main__":
    main()
