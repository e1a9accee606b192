"""What reading from an object store asks of it: requests, how many at once, what latency costs.

    python -m tests.store_requests [--shards data/coco/val] [--latency 0 0.01 0.03] [--out FILE]

A shard set is copied to a local S3 server (moto) and read for one epoch through a proxy that counts
requests and answers each of them late, by so many seconds. Opening the set, the first batch and the
rest of the epoch are told apart. Images a second are those of DALI's reader alone, at one rank.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from benchmarks.record import write
from tests.object_store import BUCKET, object_store

BATCH = 32
ANSWERED = "answered"


def measure(shards: Path, *, latency: float, buffer: int) -> dict[str, Any]:
    """Return the requests of each part of an epoch, and its images a second.

    Args:
        shards: set to copy to the store.
        latency: seconds that every answer is late.
        buffer: samples held for shuffling.
    """
    from s3fs import S3FileSystem

    from pipeline.augment import SimCLRViews
    from pipeline.graph import ViewGroup
    from pipeline.loader import Loader
    from shards.layout import open_shards

    with object_store():
        S3FileSystem().put(str(shards), f"{BUCKET}/set", recursive=True)
        with _proxy(latency) as counted:
            S3FileSystem.clear_instance_cache()  # they know the server itself
            parts: dict[str, Any] = {}
            shard_set = open_shards(f"{BUCKET}/set")
            parts["open"] = counted.since()
            group = ViewGroup(policy=SimCLRViews(), count=2, size=64)
            with Loader(
                shard_set, [group], batch_size_per_rank=BATCH, shuffle_buffer=buffer
            ) as batches:
                stage = batches.stage("read")
                images = len(stage.run()[-1])
                parts["first batch"] = counted.since()
                steps, begin = len(shard_set) // images - 1, time.perf_counter()
                for _ in range(steps):
                    stage.run()
                seconds = time.perf_counter() - begin
                parts["rest of the epoch"], most = counted.since(), counted.most()
                del stage
    return {
        "latency": latency,
        "samples": len(shard_set),
        "shards": len(shard_set.tars),
        "images_read": images * steps,
        "shuffle_buffer": buffer,
        "requests": parts,
        "most_at_once": most,
        "images_per_second": round(images * steps / seconds, 1),
    }


class _Counted:
    """The requests in a proxy's log: a line when one begins, and one when it is answered."""

    def __init__(self, log: Path) -> None:
        self._log, self._at = log, 0

    def since(self) -> dict[str, int]:
        """Return the requests since this was called last, {"METHOD kind of file": how many}."""
        lines = self._log.read_text().splitlines()
        fresh, self._at = lines[self._at :], len(lines)
        return dict(sorted(Counter(line for line in fresh if line != ANSWERED).items()))

    def most(self) -> int:
        """Return the most requests that were in flight at once."""
        lines = self._log.read_text().splitlines()
        return max(accumulate(-1 if line == ANSWERED else 1 for line in lines))


@contextmanager
def _proxy(latency: float) -> Iterator[_Counted]:
    """Point this process to a proxy before the server that it knows.

    It is a process of its own: DALI holds Python's lock while it opens files.
    """
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc
    with tempfile.NamedTemporaryFile() as log, socket.create_server(("127.0.0.1", 0)) as listening:
        words = [str(listening.fileno()), server, str(latency), log.name]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.store_requests", "proxy", *words],
            pass_fds=[listening.fileno()],
        )
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": url}):
                yield _Counted(Path(log.name))
        finally:
            process.kill()
            process.wait()


def proxy(descriptor: str, server: str, latency: str, log: str) -> None:
    """Pass requests on, each `latency` seconds late, and write them down."""
    lines = open(log, "a", buffering=1)  # noqa: SIM115 (this process is killed)

    class Late(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            lines.write(f"{self.command} {_kind(self.path)}\n")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(float(latency))
            there = http.client.HTTPConnection(server)
            there.request(self.command, self.path, body, dict(self.headers))
            answer = there.getresponse()
            content = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            lines.write(f"{ANSWERED}\n")
            self.wfile.write(content)
            there.close()

        do_GET = do_HEAD = do_PUT = do_POST = pass_on

    listening = socket.socket(fileno=int(descriptor))
    with ThreadingHTTPServer(("127.0.0.1", 0), Late) as serving:
        serving.socket.close()
        serving.socket = listening
        serving.serve_forever()


def _kind(path: str) -> str:
    if "list-type" in path or "prefix=" in path:
        return "listing"
    return Path(urlsplit(path).path).suffix.lstrip(".") or "bucket"


def main(words: Sequence[str]) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.store_requests", description=__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/coco/val"))
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 0.01, 0.03])
    parser.add_argument("--buffer", type=int, default=256, help="Samples held for shuffling.")
    parser.add_argument("--out", type=Path, help="JSON to write.")
    arguments = parser.parse_args(words)
    from training.surroundings import surroundings

    rows: list[Any] = []
    for seconds in arguments.latency:  # DALI's connection to a store is made once a process
        case = [str(arguments.shards), str(seconds), str(arguments.buffer)]
        one = [sys.executable, "-m", "tests.store_requests", "one", *case]
        rows.append(json.loads(subprocess.check_output(one)))
    record = {
        "surroundings": surroundings("torch", "nvidia-dali-cuda130"),
        "command": " ".join(["python -m tests.store_requests", *words]),
        "rows": rows,
    }
    write(record, arguments.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["proxy"]:
        proxy(*sys.argv[2:])
    elif sys.argv[1:2] == ["one"]:
        folder, late, held = sys.argv[2:]
        row = measure(Path(folder), latency=float(late), buffer=int(held))
        sys.stdout.write(json.dumps(row))
    else:
        main(sys.argv[1:])
