"""What MLflow's own client costs: `log_metric` against ours, against MLflow's server, and against a server
that does nothing.

The script runs in MLflow's environment. The server that does nothing reads a request and answers `{}` on a
kept connection; what a call takes against it is the client's own, and no server can take that away. A part of
`mlflow_side_by_side`.
"""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bench import peers, report, tracked
from bench.report import Row
from bench.servers import Running

_SCRIPT = """\
import json, statistics, sys, time
from mlflow import MlflowClient

run, count, *addresses = sys.argv[1:]
found = {}
for address in addresses:
    client = MlflowClient(address)
    client.log_metric(run, "cost", 0.5, step=0)
    times = []
    for step in range(1, int(count) + 1):
        began = time.perf_counter()
        client.log_metric(run, "cost", 0.5, step=step)
        times.append(time.perf_counter() - began)
    found[address] = statistics.median(times) * 1000
print(json.dumps(found))
"""


def rows(ours: Running, peer: Running | None, calls: int) -> list[Row]:
    """The lines: a call of the client to each server."""
    report.tell("the client's own cost")
    with echo() as port:
        servers = {"nobody": port, "ours": ours.port, **({"MLflow": peer.port} if peer else {})}
        addresses = {name: f"http://127.0.0.1:{port}" for name, port in servers.items()}
        said = peers.run_script(_SCRIPT, tracked.run_id(1), str(calls), *addresses.values())
    times_ms = json.loads(said.splitlines()[-1])
    own, we = times_ms[addresses["nobody"]], times_ms[addresses["ours"]]
    them = times_ms[addresses["MLflow"]] if peer else None
    return [
        Row(
            what="the client's log_metric, to a server that does nothing",
            figure=f"{own:.2f} ms",
            values={"ms": own},
        ),
        Row(
            what="the client's log_metric, to a server",
            figure=f"{we:.2f} ms, of which ours {max(we - own, 0.0):.2f} ms",
            beside=f"{them:.2f} ms, of which its own {max(them - own, 0.0):.2f} ms" if them else "",
            ratio=them / we if them else None,
            values={"ms": we, "own_ms": we - own},
        ),
    ]


@contextmanager
def echo() -> Iterator[int]:
    """A server that answers `{}` to whatever it is asked; its port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_answer, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
            if length:
                await reader.readexactly(int(length[1]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
