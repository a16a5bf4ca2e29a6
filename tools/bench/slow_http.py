"""An HTTP server that answers after 200 ms, as a model or a service would. usage: slow_http.py PORT

It notes when the first request came and when the last answer left; `/took` tells the seconds between them.
"""

import asyncio
import sys
import time

first = last = None


async def serve(reader, writer):
    global first, last
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET /took "):
                body = f"{last - first}".encode()
            else:
                first = first or time.monotonic()
                await asyncio.sleep(0.2)
                body, last = b"ok", time.monotonic()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=10_000)
    async with server:
        await server.serve_forever()


asyncio.run(main())
