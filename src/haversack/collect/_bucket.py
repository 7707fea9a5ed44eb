"""Objects in S3 and what speaks its protocol (MinIO, Ceph, R2), named by a URL: `s3://BUCKET/PREFIX`.

The client is boto3, with its own ways to find keys, region and endpoint (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL and the rest). An object is whole or absent; what it holds is checked by the store before it
is sent and by the service as it arrives. Where a bucket keeps versions, removing removes all of them, and
parts of unfinished uploads too, since neither is seen in a listing. Needs boto3.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.core.errors import MissingExtraError, UserError

SCHEME = "s3://"
AT_ONCE = 1000
"""Keys of one request to remove, at most."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class BucketError(UserError):
    """The service cannot be reached, or refuses what was asked."""


@dataclass(frozen=True)
class Bucket:
    """The keys of `name` that begin with `prefix` ("" or ending in a slash), through `client` of boto3."""

    name: str
    prefix: str
    client: Any

    @classmethod
    def open(cls, url: str) -> Bucket:
        """The bucket of a URL. Raises UserError for one that is none or that is not there, MissingExtraError
        without boto3."""
        bucket, _, rest = url.removeprefix(SCHEME).partition("/")
        parts = [part for part in rest.split("/") if part]
        if not url.startswith(SCHEME) or not _BUCKET.fullmatch(bucket) or {".", ".."} & set(parts):
            raise UserError(
                f"{url[:120]} names no bucket (s3://BUCKET/PREFIX).", field="url", given=url[:120]
            )
        try:
            boto3: Any = importlib.import_module("boto3")
            config: Any = importlib.import_module("botocore.config")
        except ImportError as error:
            raise MissingExtraError("a store or a set in S3", "boto3", "s3") from error
        own = config.Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=10)
        with explained(url):
            found = cls(bucket, "".join(f"{part}/" for part in parts), boto3.client("s3", config=own))
            found.client.head_bucket(Bucket=bucket)
        return found

    @property
    def url(self) -> str:
        """As it was given."""
        return f"{SCHEME}{self.name}/{self.prefix}"

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        errors: Any = importlib.import_module("botocore.exceptions")
        with explained(self.url):
            try:
                return int(self.client.head_object(Bucket=self.name, Key=self.prefix + key)["ContentLength"])
            except errors.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

    def put(self, key: str, path: Path) -> None:
        """Send a file; in parts where it is large."""
        with explained(self.url):
            self.client.upload_file(
                str(path), self.name, self.prefix + key, ExtraArgs={"ChecksumAlgorithm": "SHA256"}
            )

    def get(self, key: str, path: Path) -> None:
        """Write an object to a file."""
        with explained(self.url):
            self.client.download_file(self.name, self.prefix + key, str(path))

    def keys(self, below: str = "") -> Iterator[str]:
        """The keys that begin with `below`, without the bucket's prefix."""
        pages = self.client.get_paginator("list_objects_v2")
        with explained(self.url):
            for page in pages.paginate(Bucket=self.name, Prefix=self.prefix + below):
                for each in page.get("Contents", ()):
                    yield str(each["Key"]).removeprefix(self.prefix)

    def remove(self, below: str) -> int:
        """Remove every object whose key begins with `below`, each with all of its versions, and unfinished
        uploads; how many bytes went."""
        start, nbytes = self.prefix + below, 0
        with explained(self.url):
            pages = self.client.get_paginator("list_object_versions")
            for page in pages.paginate(Bucket=self.name, Prefix=start):
                found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
                nbytes += sum(int(each.get("Size", 0)) for each in found)
                each_id = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in found]
                for at in range(0, len(each_id), AT_ONCE):
                    gone = {"Objects": each_id[at : at + AT_ONCE], "Quiet": True}
                    answer = self.client.delete_objects(Bucket=self.name, Delete=gone)
                    if answer.get("Errors"):
                        said = answer["Errors"][0]
                        raise BucketError(
                            f"{self.url} did not remove {said['Key']} ({said['Code']}).", field="url"
                        )
            for page in self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.name, Prefix=start
            ):
                for each in page.get("Uploads", ()):
                    self.client.abort_multipart_upload(
                        Bucket=self.name, Key=each["Key"], UploadId=each["UploadId"]
                    )
        return nbytes


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """What boto3 raises as BucketError, in a sentence."""
    errors: Any = importlib.import_module("botocore.exceptions")
    transfer: Any = importlib.import_module("boto3.exceptions")
    try:
        yield
    except (errors.BotoCoreError, errors.ClientError, transfer.Boto3Error) as error:
        what = " ".join(str(error).split())[:240]
        raise BucketError(f"{url} cannot be used ({what}).", field="url", given=url) from error
