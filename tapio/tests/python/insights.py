"""Writes findings as any NATS client sees them: a JSON document a line, with subject, headers and payload as text.

Arguments: URL, output file.
"""

import asyncio
import json
import sys

import nats


async def main(url, path):
    connection = await nats.connect(url)
    with open(path, "a", encoding="utf-8") as out:

        async def heard(message):
            line = {"subject": message.subject, "headers": message.headers, "payload": message.data.decode()}
            out.write(json.dumps(line) + "\n")
            out.flush()

        await connection.subscribe("tapio.v1.insights.>", cb=heard)
        await connection.flush()
        out.write("ready\n")
        out.flush()
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
