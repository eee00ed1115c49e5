"""Prints findings as any NATS client sees them: one line of subject and JSON each. Arguments: URL, output file."""

import asyncio
import sys

import nats


async def main(url, path):
    connection = await nats.connect(url)
    with open(path, "a", encoding="utf-8") as out:

        async def heard(message):
            out.write(f"{message.subject} {message.data.decode()}\n")
            out.flush()

        await connection.subscribe("tapio.v1.insights.>", cb=heard)
        await connection.flush()
        out.write("ready\n")
        out.flush()
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
