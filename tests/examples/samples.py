"""Makes the small inputs in examples/data: `python tests/examples/samples.py` writes them again."""

import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from secondpass.demo import simulate

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"


def detections() -> str:
    """The first half hour of the demo's motorway."""
    seen = simulate(7, hours=0.6, limit=1_500).detections
    return "".join(f'{{"cid":{event.cid},"time":{event.time}}}\n' for event in seen)


def access_log() -> str:
    """Six hours of a small web site: clients come, ask for some pages, pause, and sometimes come back."""
    rng = random.Random(7)
    pages = ("/", "/search", "/cart", "/checkout", "/help", "/account")
    asked: list[tuple[float, str, str]] = []
    for number in range(60):
        client, time = f"203.0.113.{number}", 6 * 3600.0 * rng.random()
        for _ in range(1 + int(3 * rng.random())):
            for _ in range(1 + int(6 * rng.random())):
                asked.append((time, client, pages[int(len(pages) * rng.random())]))
                time += -math.log(1.0 - rng.random()) * 120.0
            time += 1200.0 + 3600.0 * rng.random()
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    lines: list[str] = []
    for time, client, page in sorted(asked):
        at = midnight + timedelta(seconds=int(time))
        status, size = (500, 0) if rng.random() < 0.02 else (200, int(20_000 * rng.random()))
        lines.append(f'{client} - - [{at:%d/%b/%Y:%H:%M:%S} +0000] "GET {page} HTTP/1.1" {status} {size}')
    lines.insert(100, "203.0.113.7 - - [02/Mar/2026:01:")  # the server was killed while it wrote
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    (DATA / "detections.jsonl").write_text(detections())
    (DATA / "access.log").write_text(access_log())
