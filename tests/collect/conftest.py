from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def new_bucket() -> Iterator[Callable[[], str]]:
    """Makes buckets on a server of this machine that speaks S3; returns their URLs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")

        def make() -> str:
            import boto3

            name = f"b-{uuid.uuid4().hex[:12]}"
            boto3.client("s3").create_bucket(Bucket=name)
            return f"s3://{name}/lab/"

        yield make
    server.stop()


@pytest.fixture(scope="module", params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    """Says of a store that is not there yet where its files are: in its folder, or in a bucket of its own."""

    def prepared(root: Path) -> Path:
        if request.param == "bucket":
            from haversack.collect._objects import PLACE, name_bucket

            if not (root / PLACE).is_file():
                name_bucket(root, request.getfixturevalue("new_bucket")())
        return root

    return prepared
