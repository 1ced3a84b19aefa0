#!/usr/bin/env bash
# webuiapi 0.9.17: a script that one call asked for is sent with every later call, from every client of the process.
#
# txt2img() and img2img() put self-attention guidance (sag=), Roop, ReActor and, where the server lists no script named
# "controlnet m2m", ControlNet into alwayson_scripts, whose default is one dictionary made when the function was. What was put in
# stays in: the next call without sag= sends it all the same, with the old numbers, and so does another client object. Pictures
# then change with what was drawn before them. `alwayson_scripts={}` in the call is the way out. Seen: 29 November 2026.
# What reverie does: its server refuses a script that it does not have, by name (docs/guide/server.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet webuiapi==0.9.17 requests==2.34.2 pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from threading import Thread

import webuiapi

asked = []


class Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alwayson_scripts"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"images": [], "parameters": {}, "info": "{}"}')

    def log_message(self, *_: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
Thread(target=server.serve_forever, daemon=True).start()
client = webuiapi.WebUIApi(port=server.server_port)
other = webuiapi.WebUIApi(port=server.server_port)
client.txt2img(prompt="a bear")
client.txt2img(prompt="a bear", sag=webuiapi.Sag(scale=0.9))
client.txt2img(prompt="a bear")
other.txt2img(prompt="an apple")
client.txt2img(prompt="a bear", controlnet_units=[webuiapi.ControlNetUnit(module="none", model="depth", weight=0.5)])
other.txt2img(prompt="an apple")
other.txt2img(prompt="an apple", alwayson_scripts={})
server.shutdown()
sent = [sorted(scripts) for scripts in asked]
print("webuiapi", version("webuiapi"), "scripts sent, call by call:", sent)
both = ["ControlNet", "Self Attention Guidance"]
assert sent[:2] == [[], both[1:]], "the first calls are other than was thought"
assert sent[2:] == [both[1:], both[1:], both, both, []], "a script is no longer kept"
assert asked[3] == asked[1] and asked[5]["ControlNet"] == asked[4]["ControlNet"], "its numbers are not kept"
PY
