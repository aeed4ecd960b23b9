"""through.py COMMAND...: starts `COMMAND proxy` and fetches a page through it, by address and by name, with curl."""

import http.server
import re
import subprocess
import sys
import threading

PAGE = bytes(range(256)) * 4096


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        pass


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Port 0: a free one, which it tells when it is ready.
    proxy = subprocess.Popen([*sys.argv[1:], "proxy", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, proxy.kill)
    watchdog.start()
    try:
        ready = next((found for line in proxy.stderr if (found := re.search(r"SOCKS5 at (\S+:\d+)", line))), None)
        if ready is None:
            sys.exit("the proxy has not become ready")
        for option, host in [("--socks5", "127.0.0.1"), ("--socks5-hostname", "localhost")]:
            url = f"http://{host}:{server.server_port}/"
            curl = ["curl", "--silent", "--show-error", "--max-time", "30", "--noproxy", "", option, ready[1], url]
            if subprocess.run(curl, stdout=subprocess.PIPE, check=True).stdout != PAGE:
                sys.exit(f"what came through {option} is not what was sent")
    finally:
        watchdog.cancel()
        proxy.kill()
        proxy.wait()


main()
