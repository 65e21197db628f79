"""Throughput and latency of the guard's HTTP service on loopback, with a model that only sleeps or a guard; one JSON line.

    python benchmarks/guard_server.py [--clients=200] [--batch=8] [--batch_ms=20] [--item_ms=0] [--picture=224]
    python benchmarks/guard_server.py --guard=W/guard

Each client keeps one connection and sends its next question, with a picture of its own, when it has the answer to the last. The
server is a process of its own (extra `serve`). The sleeping model takes batch_ms + item_ms for each request of the batch, so
`model_requests_per_s` is what full batches could reach: what is missing is the service, and the clients, which share the machine
with it. With --queue smaller than --clients the queue overflows: `refused` counts the answers 503, after which a client waits as
long as it was told.
"""

import argparse
import asyncio
import base64
import functools
import io
import json
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from srlhfv_jax.guard.service import app, server
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.requests import Moderation


def asleep(items: Sequence[Moderation], *, batch_s: float, item_s: float) -> list[dict[str, Any]]:
    """A model that takes its time and says something about the size of a verdict."""
    time.sleep(batch_s + item_s * len(items))
    return [{"safe": True, "severity": 0, "categories": [], "scores": [0.125] * 20} for _ in items]


def serve(port: Connection, limits: Limits, guard: str, batch_s: float, item_s: float) -> None:
    """The server's process: tell the port, run until SIGTERM."""
    judge = functools.partial(asleep, batch_s=batch_s, item_s=item_s)
    if guard:
        from srlhfv_jax.guard import checks
        from srlhfv_jax.guard.service import models
        from srlhfv_jax.parallel.mesh import one_device

        judge = models.moderate_with(*checks.load(guard, one_device(), dtype="float32", batch_size=limits.batch))
    listening = server.listen("127.0.0.1", 0)
    port.send(listening.getsockname()[1])
    server.make_server(app.make_app(judge, None, limits), limits).run(sockets=[listening])


def question(number: int, side: int) -> bytes:
    """A whole request with a picture of noise (no picture if `side` is 0)."""
    fields: dict[str, Any] = {
        "prompt": f"What is this, and what is it for? ({number})",
        "response": "It is for nothing at all. " * 8,
    }
    if side:
        noise = np.random.default_rng(number).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        fields["image"] = base64.b64encode(buffer.getvalue()).decode()
    body = json.dumps(fields).encode()
    return b"POST /moderate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes, int]:
    """Status, body and Retry-After (s) of the response. By hand: a client library costs more than the server."""
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length, retry_s = (int(head.partition(name)[2].split(b"\r\n", 1)[0] or 0) for name in (b"content-length:", b"retry-after:"))
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length), retry_s


async def load(
    port: int, requests: Sequence[bytes], seconds: float, warm_s: float
) -> tuple[list[float], Counter[int], dict[str, Any]]:
    """(latencies of answers in seconds, responses by status, the server's own counts), of the `seconds` after `warm_s`."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    await exchange(*await asyncio.open_connection("127.0.0.1", port), requests[0])  # a guard compiles
    begin = time.perf_counter() + warm_s

    async def client(request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (sent := time.perf_counter()) < begin + seconds:
            status, _, retry_s = await exchange(reader, writer, request)
            done = time.perf_counter()
            if begin <= done < begin + seconds:
                statuses[status] += 1
                if status == 200:
                    latencies.append(done - sent)
            await asyncio.sleep(retry_s)
        writer.close()

    await asyncio.gather(*map(client, requests))
    health = await exchange(*await asyncio.open_connection("127.0.0.1", port), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    return latencies, statuses, json.loads(health[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guard", default="", help="workdir of `srlhfv guard`; empty: a model that sleeps")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batch_ms", type=float, default=20.0)
    parser.add_argument("--item_ms", type=float, default=0.0)
    parser.add_argument("--wait_ms", type=float, default=10.0)
    parser.add_argument("--queue", type=int, default=256)
    parser.add_argument("--picture", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    limits = Limits(batch=args.batch, wait_s=args.wait_ms / 1e3, queue=args.queue)
    batch_s, item_s = args.batch_ms / 1e3, args.item_ms / 1e3
    requests = [question(number, args.picture) for number in range(args.clients)]
    line: dict[str, Any] = vars(args) | {"request_bytes": round(float(np.mean([len(one) for one in requests])))}
    line["load_average"] = round(os.getloadavg()[0], 2)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there, limits, args.guard, batch_s, item_s))
    process.start()
    try:
        latencies, statuses, health = asyncio.run(load(here.recv(), requests, args.seconds, warm_s=1.0))
    finally:
        process.terminate()
        process.join()
    asleep_s = batch_s + item_s * args.batch
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99]) * 1e3
    line |= {
        "requests_per_s": round(len(latencies) / args.seconds, 1),
        "model_requests_per_s": round(args.batch / asleep_s, 1) if asleep_s and not args.guard else None,
        "latency_ms.p50": round(float(p50), 1),
        "latency_ms.p90": round(float(p90), 1),
        "latency_ms.p99": round(float(p99), 1),
        "mean_batch": round(health["answered"]["200"] / health["batches"]["moderate"], 2),
        "refused": statuses[503],
        "failed": statuses.total() - statuses[200] - statuses[503],
        "server_peak_rss_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
