"""What `perennial init` writes for the machines of a fleet: reverse proxy, systemd units, compose.

Flower's control interface asks nobody who they are: whoever reaches it can have nodes run an app
and can let nodes in. So the server listens on loopback, and what the clients reach is a proxy that
passes on the fleet interface alone; the control interface asks for the operator's certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

OPERATOR = "operator"
"""Common name of the certificate with which the control interface may be reached from outside."""

PROXY = "proxy/nginx.conf"
"""The proxy's config, within the server's folder."""

LARGEST_MIB = 64
"""Of one message through the proxy; Flower cuts what is larger into pieces of 5 MB."""

_NGINX = """\
# What clients reach of this server: Flower's fleet interface, and nothing else of it.
#   nginx -p {server} -c proxy/nginx.conf
# Start it as the user that runs the server: these files are nobody else's to read.
worker_processes auto;
pid proxy/nginx.pid;
error_log proxy/error.log warn;

events {{
    worker_connections 4096;
}}

http {{
    access_log off;
    server_tokens off;
    client_body_temp_path proxy/body;
    proxy_temp_path proxy/answers;
    fastcgi_temp_path proxy/unused;
    uwsgi_temp_path proxy/unused;
    scgi_temp_path proxy/unused;

    # Who sends slowly or not at all keeps a connection here, not in the server behind.
    client_header_timeout 15s;
    client_body_timeout 15s;
    send_timeout 30s;
    keepalive_timeout 75s;
    client_max_body_size {largest}m;
    client_body_buffer_size 512k;
    limit_conn_zone $binary_remote_addr zone=each:10m;
    limit_conn_status 429;

    # The authority also signed the server's own certificate: only this name may operate.
    map $ssl_client_s_dn $operates {{
        default 0;
        "~(^|,)CN={operator}(,|$)" 1;
    }}

    upstream link {{
        server {link};
        keepalive 64;
    }}

    server {{
        listen {listen} ssl;
        ssl_certificate ../tls/server.pem;
        ssl_certificate_key ../tls/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_client_certificate ../tls/ca.pem;
        ssl_verify_client optional;

        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate ../tls/ca.pem;
        proxy_ssl_name localhost;
        proxy_ssl_session_reuse on;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_read_timeout 120s;

        location /v1/fleet/ {{
            limit_conn each 512;
            proxy_pass https://link;
        }}

        location /v1/control/ {{
            if ($ssl_client_verify != SUCCESS) {{
                return 403;
            }}
            if ($operates = 0) {{
                return 403;
            }}
            proxy_pass https://link;
        }}

        location / {{
            return 404;
        }}
    }}
}}
"""

_STAY = "-g 'daemon off;'"

_UNIT = """\
[Unit]
Description=Perennial {what}
After=network-online.target
Wants=network-online.target

[Service]
# Where Perennial is installed, and who runs it, are this machine's own.
ExecStart={perennial} {words}
WorkingDirectory={folder}
User=perennial
{more}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={folder}
PrivateTmp=yes
LimitCORE=0
"""

_STAYS = """\
Restart=always
RestartSec=5
TimeoutStopSec=60
"""

_CREDENTIAL = """\
# Made with: systemd-creds encrypt --name=passphrase - /etc/credstore.encrypted/perennial
LoadCredentialEncrypted=passphrase:/etc/credstore.encrypted/perennial
Environment=PERENNIAL_KEY_PASSPHRASE_FILE=%d/passphrase
"""

_INSTALL = """
[Install]
WantedBy=multi-user.target
"""

_TIMER = """\
[Unit]
Description=Perennial: one more domain, each week

[Timer]
OnCalendar=Sun 03:00
RandomizedDelaySec=30min
Persistent=true

[Install]
WantedBy=timers.target
"""

_DOCKERFILE = """\
# The image of all parties of the fleet: docker compose build
FROM python:3.12-slim
RUN pip install --no-cache-dir perennial-fl=={version}
RUN useradd --create-home --uid 1000 perennial
USER perennial
ENTRYPOINT ["perennial"]
"""

_COMPOSE = """\
# One file for all machines; on each, only its own services: docker compose up server proxy
x-party: &party
  build: .
  image: perennial:{version}
  user: "1000"
  restart: always
  stop_grace_period: 60s
  security_opt: ["no-new-privileges:true"]

services:
"""


def nginx(server: Path, listen: int, link: str) -> str:
    """The proxy's config.

    Args:
        server: the server's folder.
        listen: the port that clients reach.
        link: host:port of the SuperLink behind.
    """
    return _NGINX.format(
        server=server, listen=listen, link=link, largest=LARGEST_MIB, operator=OPERATOR
    )


def units(home: Path, names: Sequence[str], perennial: str, *, keyed: bool) -> Mapping[str, str]:
    """File name -> systemd unit of every party of a fleet.

    Args:
        home: the fleet's folder, at the same place on each machine.
        names: of the clients.
        perennial: path of the command.
        keyed: whether there is a key holder.
    """
    server, update = home / "server", home / "update.toml"

    def service(what: str, words: str, folder: Path, more: str = _STAYS) -> str:
        return _UNIT.format(
            what=what, words=words, folder=folder, perennial=perennial, more=more.strip()
        )

    found = {
        "perennial-server.service": service("server", f"server {server}/server.toml", server)
        + _INSTALL,
        "perennial-proxy.service": service("proxy", "", server).replace(
            f"ExecStart={perennial} ", f"ExecStart=/usr/sbin/nginx -p {server} -c {PROXY} {_STAY}"
        )
        + _INSTALL,
        # The gate's refusal is a failure of the unit, so that whoever watches units hears of it.
        "perennial-update.service": service(
            "update", f"update {update} --json", server, "Type=oneshot\n"
        ),
        "perennial-update.timer": _TIMER,
    }
    if keyed:
        folder = home / "keyholder"
        words = f"keyholder {folder}/keyholder.toml"
        more = _STAYS + _CREDENTIAL
        found["perennial-keyholder.service"] = service("key holder", words, folder, more) + _INSTALL
    for name in names:
        folder = home / name
        found[f"perennial-{name}.service"] = (
            service(name, f"client {folder}/client.toml", folder) + _INSTALL
        )
    return found


def compose(
    home: Path, names: Sequence[str], ports: Mapping[str, int], version: str, *, keyed: bool
) -> Mapping[str, str]:
    """File name -> text, of an image and of the services made from it.

    Args:
        home: the fleet's folder, at the same place on each machine.
        names: of the clients.
        ports: `server` and `keyholder`, as other machines reach them; `status` and `client`, of
            their health, within their own containers.
        version: of this package.
        keyed: whether there is a key holder.
    """
    lines = [_COMPOSE.format(version=version)]

    def party(name: str, command: str, folder: str, *more: str) -> None:
        block = [f"  {name}:", "    <<: *party", f"    command: {command}"]
        block += [f"    volumes: ['./{folder}:{home}/{folder}']", *(f"    {m}" for m in more)]
        lines.append("\n".join(block) + "\n")

    def published(name: str) -> str:
        return f"ports: ['{ports[name]}:{ports[name]}']"

    def healthy(name: str) -> str:
        asks = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{ports[name]}/readyz')"
        return f'healthcheck: {{test: ["CMD", "python", "-c", "{asks}"], start_period: 60s}}'

    # The proxy shares the server's network, whose loopback nobody else reaches.
    serves = f"server {home}/server/server.toml"
    party("server", serves, "server", published("server"), healthy("status"))
    lines.append(
        "  proxy:\n"
        "    image: nginx:stable\n"
        "    user: '1000'\n"
        "    restart: always\n"
        "    network_mode: service:server\n"
        "    depends_on: [server]\n"
        f"    command: nginx -p {home}/server -c {PROXY} {_STAY}\n"
        f"    volumes: ['./server:{home}/server']\n"
    )
    lines.append(
        "  update:  # docker compose run --rm update\n"
        "    <<: *party\n"
        "    restart: 'no'\n"
        "    profiles: [update]\n"
        "    network_mode: service:server\n"
        f"    command: update {home}/update.toml --json\n"
        f"    volumes: ['./server:{home}/server', './update.toml:{home}/update.toml:ro']\n"
    )
    if keyed:
        party(
            "keyholder",
            f"keyholder {home}/keyholder/keyholder.toml",
            "keyholder",
            published("keyholder"),
            "secrets: [passphrase]",
            "environment: {PERENNIAL_KEY_PASSPHRASE_FILE: /run/secrets/passphrase}",
        )
    for name in names:
        party(name, f"client {home}/{name}/client.toml", name, healthy("client"))
    if keyed:
        lines.append("secrets:\n  passphrase:\n    environment: PERENNIAL_KEY_PASSPHRASE\n")
    return {
        "compose.yaml": "\n".join(lines),
        "Dockerfile": _DOCKERFILE.format(version=version),
    }
