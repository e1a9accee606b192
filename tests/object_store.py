"""A local S3 server (moto) that tests may stop and kill."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

BUCKET = "s3://bucket"


@contextmanager
def object_store() -> Iterator[subprocess.Popen[bytes]]:
    """Give a server with an empty bucket, and point this process and its children to it.

    It is a process of its own: DALI holds Python's lock while it opens files.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with mock.patch.dict(os.environ, settings):
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=1).read()
                    break
                except OSError:
                    time.sleep(0.1)
            from s3fs import S3FileSystem

            S3FileSystem.clear_instance_cache()  # they know an earlier server
            S3FileSystem().mkdir("bucket")
            yield server
    finally:
        server.kill()
        server.wait()
