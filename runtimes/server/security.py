"""Who may talk to a server: the token, the certificate, and which addresses may be listened on without them."""

from __future__ import annotations

import hmac
import ipaddress
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rfedge.errors import ConfigError

TOKEN_VARIABLE: Final = "RFEDGE_SERVER_TOKEN"
MIN_TOKEN_CHARACTERS: Final = 16
MAX_TOKEN_CHARACTERS: Final = 512


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token of `file`, else of the environment, else None; never of a flag, which every user of a machine can
    read.

    Raises:
        ConfigError: the file cannot be read, or the token, which the text does not hold, is unfit.
    """
    if file is None:
        source, text = f"${TOKEN_VARIABLE}", environment.get(TOKEN_VARIABLE)
        if text is None:
            return None
    else:
        source = f"token file {file}"
        try:
            with file.open("rb") as opened:
                text = opened.read(MAX_TOKEN_CHARACTERS + 2).decode("ascii", errors="replace")
        except OSError as error:
            remedy = "Check the path."
            raise ConfigError(source, got=error.strerror or str(error), expected="a readable file", remedy=remedy) from None
    token = text.strip()
    if not MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_CHARACTERS:
        expected, remedy = f"{MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS}", "Make one: openssl rand -hex 32."
        raise ConfigError(source, got=f"a token of {len(token)} characters", expected=expected, remedy=remedy)
    if not all("!" <= character <= "~" for character in token):
        remedy = "Make one: openssl rand -hex 32."
        raise ConfigError(source, got="spaces, control or non-ASCII characters", expected="printable ASCII", remedy=remedy)
    return token


def is_authorised(header: str | None, token: str | None) -> bool:
    """Whether an `Authorization` header carries the token, as `Bearer TOKEN` or as openpi's `Api-Key TOKEN`."""
    if token is None:
        return True
    scheme, _, given = (header or "").partition(" ")
    # A header may hold any bytes; websockets hands those outside ASCII over as surrogates.
    # The comparison takes the same time wherever the two differ.
    matches = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token.encode())
    return matches and scheme.lower() in ("bearer", "api-key")


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach a socket bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None, *, insecure: bool) -> None:
    """Refuse to listen beyond this machine without a token, unless `insecure` says that it is meant."""
    if not is_loopback(host) and token is None and not insecure:
        remedy = f"Pass --token-file or set {TOKEN_VARIABLE}; or --insecure, and anyone in reach can use the policy."
        raise ConfigError("host", got=f"{host} without a token", expected="a loopback address, or a token", remedy=remedy)


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the server's side of TLS 1.2 or newer, or None without files.

    Raises:
        ConfigError: only one of the two is given, a file cannot be read, or they do not belong together.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "--certificate" if certificate is None else "--key"
        raise ConfigError("TLS", got=f"no {missing}", expected="both files", remedy="Give certificate and key.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A key with a passphrase would ask on the terminal; a server has none.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        expected, remedy = "a PEM certificate and its key without a passphrase", "Check the paths."
        raise ConfigError(f"TLS files {certificate} and {key}", got=str(error), expected=expected, remedy=remedy) from None
    return context
