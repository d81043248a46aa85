"""Runs every solution of the code bank in a folder of its own and prints what failed, as JSON.

A stand-in answers for the network (`requests`, `httpx`, `urllib`, TLS, mail), for `flask`, and for the programs that
not every machine has (`zip`, `ping` …); sockets are bound on the loopback interface and fixed paths under /tmp lie in
the folder. Everything else is real: SQLite, the shell, files, pickles, YAML, XML, templates, archives.
"""

import asyncio  # noqa: F401
import base64  # noqa: F401
import contextlib
import getpass
import http.client
import imaplib
import io
import json
import marshal
import os
import pickle
import shelve
import shutil
import smtplib
import socket
import sqlite3
import ssl
import sys
import tarfile
import tempfile
import types
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler  # noqa: F401
from pathlib import Path
from unittest.mock import MagicMock
from xml.sax import ContentHandler  # noqa: F401

PAGE = b'<html><title>Page</title><a href="x">x</a></html>'
SECRETS = """ORDERS_PASSWORD LIBRARY_PASSWORD DB_PASSWORD STOCK_PASSWORD WEATHER_TOKEN BOT_TOKEN MAPS_TOKEN PAY_TOKEN
ADMIN_PASSWORD DIARY_PASSWORD PAGE_TOKEN COOKIE_SECRET BACKUP_PASSPHRASE MAIL_PWD PRINTER_PASSWORD WIFI_PASSPHRASE"""
FREE = 4096
STAND_INS = {"zip": "", "unzip": "", "ping": "", "dig": "127.0.0.1", "host": "localhost", "df": f"Avail; echo {FREE}"}


def db(schema: str) -> sqlite3.Connection:
    """A table with one row of "a" in every column, as in `db("users(name,email)")`."""
    connection = sqlite3.connect(":memory:")
    table, columns = schema.rstrip(")").split("(")
    names = columns.split(",")
    connection.execute(f"create table {schema}")
    connection.execute(f"insert into {table} values ({','.join('?' * len(names))})", ["a"] * len(names))
    return connection


class Response(io.BytesIO):
    """What the web answers: a short page, or JSON where the address says so."""

    def __init__(self, url: object = "", *_args: object, **_options: object) -> None:
        body = b'{"rate": 2}' if "json" in str(url) else PAGE
        super().__init__(body)
        self.url, self.content, self.text = url, body, body.decode()
        self.status_code = self.status = 200
        self.ok, self.headers, self.cookies, self.elapsed = True, {"a": "b"}, {"c": "d"}, MagicMock()

    def json(self) -> object:
        return json.loads(self.text) if self.text.startswith("{") else {}

    def raise_for_status(self) -> None:
        return None


class Robot:
    place = 0

    def forward(self, steps: int) -> None:
        self.place += steps


def App() -> MagicMock:
    return MagicMock()


def module(name: str, **members: object) -> None:
    made = types.ModuleType(name)
    made.__dict__.update(members)
    sys.modules[name] = made


def put_stand_ins(programs: str) -> None:
    """Replace what would leave the folder."""
    web = dict.fromkeys(("get", "post", "put", "head"), Response)
    client = lambda *_args, **_options: types.SimpleNamespace(**web)  # noqa: E731
    module("requests", **web, Session=client)
    module("httpx", **web, Client=client)
    flask = MagicMock()
    module("flask", Flask=flask, request=flask, jsonify=flask)
    module("shop", app=flask)
    try:
        import defusedxml.sax  # noqa: F401
    except ImportError:
        import xml.dom.minidom
        import xml.etree.ElementTree
        import xml.sax

        module("defusedxml", ElementTree=xml.etree.ElementTree, minidom=xml.dom.minidom, sax=xml.sax)
        sys.modules |= {
            "defusedxml.ElementTree": xml.etree.ElementTree,
            "defusedxml.minidom": xml.dom.minidom,
            "defusedxml.sax": xml.sax,
        }
    urllib.request.urlopen = Response
    urllib.request.urlretrieve = lambda _url, path: open(path, "wb").close()
    http.client.HTTPSConnection = smtplib.SMTP_SSL = MagicMock()
    imaplib.IMAP4_SSL = MagicMock()
    imaplib.IMAP4_SSL.return_value.select.return_value = ("OK", [b"3"])
    ssl.SSLContext.wrap_socket = lambda *_args, **_options: "wrapped"
    socket.create_connection = MagicMock()
    socket.gethostbyname = lambda _name: "127.0.0.1"
    socket.gethostbyaddr = lambda _address: ("localhost", [], [])
    getpass.getpass = lambda: "kept"
    # What else runs on the machine writes between the two readings of a pair.
    shutil.disk_usage = lambda _path: types.SimpleNamespace(free=FREE)
    socket.getfqdn = lambda *_args: "localhost"
    bind = socket.socket.bind
    socket.socket.bind = lambda self, _address: bind(self, ("127.0.0.1", 0))
    os.environ |= dict.fromkeys(SECRETS.split(), "kept")
    os.environ["PATH"] = programs + os.pathsep + os.environ["PATH"]
    for name, says in STAND_INS.items():
        path = Path(programs, name)
        path.write_text(f"#!/bin/sh\necho {says}\n")
        path.chmod(0o755)


def furnish() -> None:
    """Files that the calls read, in the current folder."""
    value = {"a": 1}
    texts = {
        "a.txt": "alpha\nbeta\nalpha\n",
        "a.yaml": "a: 1\n",
        "s.yaml": "services: {b: 1, a: 2}\n",
        "a.xml": '<r><station name="x"/><item/><product id="p">2</product><link href="h"/></r>',
        "b.xml": '<r><record a="1"/></r>',
        "a.lst": "[1, 2]",
        "a.json": json.dumps(value),
    }
    for name, text in texts.items():
        with open(name, "w") as file:
            file.write(text)
    with open("a.pkl", "wb") as file:
        pickle.dump(value, file)
    with open("a.mar", "wb") as file:
        marshal.dump(value, file)
    with shelve.open("shelf") as kept:
        kept.update(value)
    for folder in ("d", "tmp", "homes"):
        Path(folder).mkdir()
    shutil.copy("a.txt", "d/b.log")
    with tarfile.open("a.tar", "w") as tar:
        tar.add("a.txt", "README")
    shutil.copy("a.tar", "snapshot-1.tar")
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write("a.txt")


def outcome(code: str, call: str, furnished: str) -> str:
    """The value of `call` after `code` has run in a copy of the furnished folder, as text."""
    code = code.replace('"/tmp/', '"tmp/').replace('"/var/tmp', '"tmp')
    names = {name: globals()[name] for name in ("App", "Robot", "ContentHandler", "BaseHTTPRequestHandler")}
    modules = {name: globals()[name] for name in ("asyncio", "base64", "io", "marshal", "pickle")}
    given = ["connect_to", "make_client", "login", "create_user", "join", "send", "encrypt", "unlock", "download"]
    scope = {**names, **modules, **dict.fromkeys(given, lambda *_args, **_options: "done"), "db": db}
    scope |= {"input": lambda _text: "kept", "__name__": "solution"}
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        shutil.copytree(furnished, folder, dirs_exist_ok=True)
        os.chdir(folder)
        os.environ |= {"TMPDIR": folder, "HOME": folder}
        tempfile.tempdir = None
        try:
            exec(compile(code, "solution", "exec"), scope)
            value = eval(call, scope)
            return repr(list(value) if isinstance(value, types.GeneratorType) else value)
        finally:
            os.chdir(home)
            os.environ.pop("TMPDIR")
            tempfile.tempdir = None


def failures(rows: list[dict[str, object]], furnished: str) -> list[str]:
    found = []
    for row in rows:
        said = {}
        for kind in ("secure", "vulnerable"):
            call = row.get("call_vulnerable", row["call"]) if kind == "vulnerable" else row["call"]
            try:
                said[kind] = outcome(str(row[kind]), str(call), furnished)
            except BaseException as error:
                found.append(f"{row['id']} {kind}: {type(error).__name__}: {error}")
        if len(said) == 2 and not row.get("differs") and said["secure"] != said["vulnerable"]:
            found.append(f"{row['id']}: {said['secure']} is not {said['vulnerable']}")
    return found


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as bank:
        tasks = [json.loads(line) for line in bank]
    sys.argv = sys.argv[:1]
    with tempfile.TemporaryDirectory() as programs, tempfile.TemporaryDirectory() as furnished:
        put_stand_ins(programs)
        with contextlib.chdir(furnished):
            furnish()
        print(json.dumps(failures(tasks, furnished)))
