#!/usr/bin/env python3
"""Changes a film in psql and measures, from outside of PostgreSQL, how long until each target has it.

The clock starts when psql prints that the UPDATE is committed. Each target is then asked again and again over an open
connection: Redis with GET, the engines with GET /movie/_doc/4941, which sees a document before a search does.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

FILM = 4941
TITLES = ["Skyfall (007)", "Skyfall (director's cut)", "Skyfall (in colour)", "Skyfall (restored)", "Skyfall"]


class Redis:
    """As much of a client as GET takes."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self.file = self.socket.makefile("rb")

    def title(self):
        self.socket.sendall(f"GET movie:{FILM}\r\n".encode())
        length = int(self.file.readline()[1:])
        return None if length < 0 else json.loads(self.file.read(length + 2))["title"]


class Engine:
    """One connection to a search engine."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)

    def title(self):
        self.connection.request("GET", f"/movie/_doc/{FILM}?_source_includes=title")
        return json.loads(self.connection.getresponse().read()).get("_source", {}).get("title")


def watch(name, target, title, committed):
    """Milliseconds since `committed` until the target has the title."""
    while target.title() != title:
        if time.perf_counter() - committed > 20:
            sys.exit(f"demo: after 20 s the change is not in {name}")
        time.sleep(0.0005)
    return 1000 * (time.perf_counter() - committed)


def main():
    targets = {
        "Redis": Redis(os.environ["REDIS_URL"]),
        "OpenSearch": Engine(os.environ["OPENSEARCH_URL"]),
        "Elasticsearch": Engine(os.environ["ES_URL"]),
    }
    psql = subprocess.Popen(["psql", "-X"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    titles = TITLES
    if targets["Redis"].title() == titles[0]:
        titles = titles[1:]
    print(f"{'':70}{'ms after the commit until it is in'}")
    print(f"{'':70}{''.join(f'{name:>14}' for name in targets)}")
    for title in titles:
        quoted = title.replace("'", "''")
        sql = f"UPDATE movie SET title = '{quoted}' WHERE id = {FILM};"
        psql.stdin.write(sql + "\n")
        if psql.stdout.readline() != "UPDATE 1\n":
            sys.exit(f"demo: this changed nothing: {sql}")
        committed = time.perf_counter()
        with ThreadPoolExecutor(len(targets)) as pool:
            watches = [pool.submit(watch, name, target, title, committed) for name, target in targets.items()]
        arrived = {name: watched.result() for name, watched in zip(targets, watches)}
        print(f"{sql:70}" + "".join(f"{arrived[name]:14.1f}" for name in targets))
        time.sleep(0.5)
    psql.stdin.close()
    psql.wait()


main()
