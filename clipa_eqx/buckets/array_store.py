"""TensorStore's requests to a folder in a bucket: how it is opened, how long they may take, and their errors."""

import os
from dataclasses import dataclass, field
from typing import Any

from clipa_eqx.buckets.bucket import LONGEST_PAUSE, SECONDS_PER_BYTE, Bucket, BucketError, patience, s3_endpoint

_NO_ANSWER = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "retry attempts failed")
# TensorStore itself waits without limit for the answer to a request that was lost. It is sent again after so long.
_SILENCE = {
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "10",
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "60",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
}


@dataclass(frozen=True)
class ArrayStore:
    """A folder of arrays, for TensorStore.

    Attributes:
        kvstore: its JSON of the folder.
        context: its JSON of the context.
        seconds: for which an answer is waited for; None without a limit.
    """

    kvstore: dict[str, Any]
    context: dict[str, Any] = field(default_factory=dict[str, Any])
    seconds: float | None = None

    def limit(self, size: int) -> float | None:
        """Seconds in which requests with so many bytes are answered; None without a limit."""
        return None if self.seconds is None else self.seconds + size * SECONDS_PER_BYTE


def array_store(bucket: Bucket, name: str) -> ArrayStore:
    """A folder below a bucket folder, with as much patience as other requests have."""
    seconds = patience()
    longest = max(min(LONGEST_PAUSE, seconds / 4), 0.1)
    retries = {
        "max_retries": max(int(seconds / longest) + 2, 3),
        "initial_delay": f"{min(1.0, longest):.2f}s",
        "max_delay": f"{longest:.2f}s",
    }
    for variable, value in _SILENCE.items():
        os.environ.setdefault(variable, value)
    kvstore = {"bucket": bucket.name, "path": f"{bucket.folder}/{name}/".lstrip("/")}
    if bucket.scheme == "gs":
        if "STORAGE_EMULATOR_HOST" in os.environ:  # the name that other libraries know
            os.environ["TENSORSTORE_GCS_HTTP_URL"] = os.environ["STORAGE_EMULATOR_HOST"]
            # An emulator needs no credentials. Without a token TensorStore looks for them in the network at each
            # save, which may take a minute on a machine that has none.
            os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
        return ArrayStore({"driver": "gcs", **kvstore}, {"gcs_request_retries": retries}, seconds)
    endpoint = s3_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return ArrayStore(
        {
            "driver": "s3",
            **kvstore,
            **({"endpoint": endpoint} if endpoint else {}),
            **({"aws_region": region or "us-east-1"} if region or endpoint else {}),
        },
        {"s3_request_retries": retries},
        seconds,
    )


def failed(bucket: Bucket, what: str, error: Exception) -> BucketError:
    """The error for requests of TensorStore that failed, with its cause."""
    problem = _problem(bucket, what, error)
    problem.__cause__ = error
    return problem


def _problem(bucket: Bucket, what: str, error: Exception) -> BucketError:
    if isinstance(error, TimeoutError) or any(words in str(error) for words in _NO_ANSWER):
        return bucket.unanswered(what, error, patience())
    text = " ".join(str(error).split())[:200]
    return BucketError(f"{bucket.url}: {what}: {type(error).__name__}: {text}. Run the same command again")
