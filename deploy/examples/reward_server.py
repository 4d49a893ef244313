#!/usr/bin/env python3
"""A reward of your own behind a URL: the message of reward.py as the body of a POST, one task or a list of them
(rewards/PLUGINS.md). `reward_server.py [PORT] [TOKEN_FILE]` listens on this host and prints its port; with a token file
it answers only those who send that token. For other hosts put it behind a server that speaks TLS."""
import hmac, http.server, json, sys

TOKEN = open(sys.argv[2]).read().strip() if len(sys.argv) > 2 else None
SPACES = " \t\n\v\f\r"


def judge(task):
    marker = task["meta"].get("after")
    text = task["completion"].rpartition(marker) if marker else ("", "found", task["completion"])
    whole = task["finish"] in ("eos", "stop") or not task["meta"].get("end")
    right = bool(text[1]) and whole and text[2].strip(SPACES) == task["gold"].strip(SPACES)
    return {"id": task["id"], "status": "ok" if right else "wrong", "reward": float(right)}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # links stay open between requests
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sent = self.headers.get("Authorization", "")
        if TOKEN and not hmac.compare_digest(sent.encode(), ("Bearer " + TOKEN).encode()):
            return self.reply(401, {"error": "wrong token"})
        tasks = json.loads(body)
        self.reply(200, [judge(task) for task in tasks] if isinstance(tasks, list) else judge(tasks))

    def reply(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
