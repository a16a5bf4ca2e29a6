"""Starts llama.cpp's HTTP server for ollama-sim: one model, loopback only.

The parent writes one line of JSON settings to standard input and keeps it open. A line `ready URL` on standard
output says where the server listens. End of file on standard input means that the parent is gone: exit at once.
"""

import json
import os
import sys

import xllamacpp

settings = json.loads(sys.stdin.readline())
params = xllamacpp.CommonParams()
params.model.path = settings["model"]
params.n_parallel = settings["parallel"]
params.n_ctx = settings["num_ctx"] * settings["parallel"]
params.n_batch = params.n_ubatch = settings["num_batch"]
params.ctx_shift = settings["shift"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
params.hostnames = ["127.0.0.1"]
params.port = 0
params.api_keys = [settings["key"]]
params.offline = True
params.ui = False
params.verbosity = 0

server = xllamacpp.Server(params)
print("ready", server.listening_address, flush=True)
sys.stdin.read()
# The server's threads would keep the interpreter alive.
os._exit(0)
