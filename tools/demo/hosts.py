"""The Ollama servers of OLLAMA_HOST, read as the worker reads it: a list, each with or without scheme and port.

Prints the URLs of those that answer, separated by commas, and on a second line a model that one of them has. Nothing answers:
prints nothing.
"""

import json
import sys
import urllib.request

# No proxy: whoever names a server means that one.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def url(host: str) -> str:
    host = host.strip().rstrip("/")
    if "://" not in host:
        host = f"http://{host}" if ":" in host.rsplit("]", 1)[-1] else f"http://{host}:11434"
    # A server listens on all addresses; a client has to choose one.
    return host.replace("://0.0.0.0", "://127.0.0.1", 1)


def models(host: str) -> list | None:
    """The models of a server, or None where none answers."""
    try:
        with OPENER.open(f"{host}/api/tags", timeout=3) as answer:
            return [model["name"] for model in json.load(answer)["models"]]
    except (OSError, ValueError, KeyError):
        return None


def main() -> None:
    found = {host: models(host) for host in map(url, sys.argv[1].split(","))}
    found = {host: names for host, names in found.items() if names is not None}
    if found:
        usable = [name for names in found.values() for name in names if "embed" not in name]
        print(",".join(found))
        print(usable[0] if usable else "")


if __name__ == "__main__":
    main()
