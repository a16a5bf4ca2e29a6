#!/usr/bin/env python3
"""What is linked into the programs, as CycloneDX 1.5: every crate with its version, licence, checksum and what it needs.

    tools/sbom.py > orchestra.cdx.json

From `cargo metadata` and `Cargo.lock` alone, so it needs nothing installed. What only builds or tests need is left out.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    target = re.search(r"host: (\S+)", subprocess.check_output(["rustc", "-vV"], text=True, cwd=ROOT))[1]
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    metadata = json.loads(subprocess.check_output(command, cwd=ROOT))
    entry = r'name = "(.+)"\nversion = "(.+)"\nsource = ".+"\nchecksum = "(.+)"'
    lock = (ROOT / "Cargo.lock").read_text()
    sums = {(name, version): checksum for name, version, checksum in re.findall(entry, lock)}
    packages = {p["id"]: p for p in metadata["packages"]}
    needs = {
        node["id"]: [d["pkg"] for d in node["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
        for node in metadata["resolve"]["nodes"]
    }
    root = metadata["resolve"]["root"]
    linked, ahead = {root}, [root]
    while ahead:
        for found in needs[ahead.pop()]:
            if found not in linked:
                linked.add(found)
                ahead.append(found)

    def ref(id):
        return "pkg:cargo/{name}@{version}".format(**packages[id])

    def component(id):
        package = packages[id]
        shown = {
            "type": "application" if id == root else "library",
            "bom-ref": ref(id),
            "name": package["name"],
            "version": package["version"],
            "purl": ref(id),
        }
        if package["license"]:
            shown["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if checksum := sums.get((package["name"], package["version"])):
            shown["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return shown

    json.dump(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": component(root), "properties": [{"name": "target", "value": target}]},
            "components": [component(id) for id in sorted(linked - {root}, key=ref)],
            "dependencies": [
                {"ref": ref(id), "dependsOn": sorted({ref(d) for d in needs[id]} - {ref(id)})}
                for id in sorted(linked, key=ref)
            ],
        },
        sys.stdout,
        indent=1,
    )
    print()


if __name__ == "__main__":
    main()
