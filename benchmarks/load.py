"""Load on a server: send the requests that a JSON on standard input describes; print what came back as JSON.

    python benchmarks/load.py < load.json

A process of its own, of the standard library alone (and grpcio, if a request is gRPC's), that parses no answer: on a
machine that it shares with the server, its own processor time counts, and is printed.

The JSON: `host`, `port`, `grpc_port`; `requests`, a list of {kind, target, method, headers, body (a file), expect
(statuses), same (whether all its answers have the same bytes), leaves (the part of the request that is sent before the
client leaves)}; and `mode`:

- `closed`: `clients` clients, each of which sends one request after the other, until `seconds` or `count`.
- `open`: requests arrive at random (exponential gaps, `seed`) at `rate` a second for `seconds`, whatever is answered.
- `even`: the same with equal gaps, one at a time on one connection; a request whose time has passed is sent at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHOD = "/inference.GRPCInferenceService/ModelInfer"
LONGEST = 120.0  # seconds that an answer is waited for


class Connection:
    """A connection that is kept, and opened again when the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port, self._streams = host, port, None

    async def leave(self, request: bytes, part: float) -> None:
        """Send a part of a request on a connection of its own, and close it."""
        _, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(request[: round(len(request) * part)])
        await writer.drain()
        writer.close()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return the status and the body of the answer."""
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection(self._host, self._port, limit=2**20)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
        except BaseException:
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Load:
    """Requests, and what came of them."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.requests = [(one, self._bytes_of(one)) for one in plan["requests"]]
        self.done: list[tuple[float, float, int | str, str]] = []  # begin, seconds, status, kind
        self.unexpected: list[str] = []
        self._answers: dict[int, bytes] = {}
        self._channel: Any = None
        self._begin = time.perf_counter()

    def _bytes_of(self, one: dict[str, Any]) -> bytes:
        body = Path(one["body"]).read_bytes() if one.get("body") else b""
        if one.get("method") == "grpc":
            return body
        headers = {"Host": "server", "Content-Length": str(len(body)), **one.get("headers", {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{one.get('method', 'POST')} {one['target']} HTTP/1.1\r\n{lines}\r\n".encode() + body

    async def run(self) -> dict[str, Any]:
        if any(one.get("method") == "grpc" for one, _ in self.requests):
            import grpc

            options = [("grpc.max_receive_message_length", -1)]
            address = f"{self.plan['host']}:{self.plan['grpc_port']}"
            self._channel = grpc.aio.insecure_channel(address, options=options)
        self._begin = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF)
        await {"closed": self._closed, "open": self._open, "even": self._even}[self.plan["mode"]]()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"done": self.done, "unexpected": self.unexpected[:20], "cpu_seconds": cpu, "seconds": self.now}

    @property
    def now(self) -> float:
        return time.perf_counter() - self._begin

    async def _closed(self) -> None:
        turns = self._turns()

        async def client() -> None:
            connection = self._connection()
            for number in turns:
                if self.now >= self.plan.get("seconds", 1e9):
                    break
                await self._send(connection, number, self.now)
            connection.close()

        await asyncio.gather(*(client() for _ in range(self.plan["clients"])))

    def _turns(self) -> Iterator[int]:
        """Yield numbers of requests: in turn, or at random by their `share`."""
        shares = [one.get("share") for one, _ in self.requests]
        dice, count = random.Random(self.plan.get("seed", 0)), self.plan.get("count", 10**9)
        for turn in range(count):
            if shares[0] is None:
                yield turn % len(self.requests)
            else:
                yield dice.choices(range(len(self.requests)), shares)[0]

    async def _open(self) -> None:
        dice, free, tasks, at = random.Random(self.plan.get("seed", 0)), list[Connection](), set[Any](), 0.0
        turns = self._turns()

        async def one(number: int, at: float) -> None:
            connection = free.pop() if free else self._connection()
            await self._send(connection, number, at)
            free.append(connection)

        while (at := at + dice.expovariate(self.plan["rate"])) < self.plan["seconds"]:
            await asyncio.sleep(at - self.now)
            task = asyncio.create_task(one(next(turns), at))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _even(self) -> None:
        connection = self._connection()
        for turn in range(round(self.plan["rate"] * self.plan["seconds"])):
            at = turn / self.plan["rate"]
            await asyncio.sleep(at - self.now)
            await self._send(connection, turn % len(self.requests), self.now)
        connection.close()

    def _connection(self) -> Connection:
        return Connection(self.plan["host"], self.plan["port"])

    async def _send(self, connection: Connection, number: int, begin: float) -> None:
        one, data = self.requests[number]
        status: int | str
        try:
            async with asyncio.timeout(LONGEST):
                if one.get("method") == "grpc":
                    status, answer = await self._call(data)
                elif one.get("leaves"):
                    status, answer = "left", b""
                    await connection.leave(data, one["leaves"])
                else:
                    status, answer = await connection.ask(data)
        except Exception as error:  # noqa: BLE001 - a request that was lost, whatever the reason
            status, answer = f"lost: {type(error).__name__}", b""
        self.done.append((begin, self.now - begin, status, one["kind"]))
        if status not in one["expect"]:
            self.unexpected.append(f"{one['kind']}: {status} {answer[:200]!r}")
        elif one.get("same") and status in (200, "OK"):
            digest = hashlib.blake2b(answer, digest_size=16).digest()
            if self._answers.setdefault(number, digest) != digest:
                self.unexpected.append(f"{one['kind']}: another answer to the same request")

    async def _call(self, data: bytes) -> tuple[str, bytes]:
        import grpc

        try:
            return "OK", await self._channel.unary_unary(METHOD)(data)
        except grpc.aio.AioRpcError as error:
            return error.code().name, (error.details() or "").encode()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Load(json.load(sys.stdin)).run())))
