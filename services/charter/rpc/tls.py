"""Mutual TLS between the services: on when CHARTER_TLS names a folder of certificates, for servers and clients alike.

The folder holds ``tls.crt`` and ``tls.key`` (who this process is) and ``ca.crt`` (whose certificates it trusts), the
names that cert-manager gives the files of a Secret. Whoever has a certificate of that CA may call.
"""

import os
from pathlib import Path

import grpc

from charter.environment import EnvironmentVariableError

VARIABLE = "CHARTER_TLS"

_FILES = ("tls.key", "tls.crt", "ca.crt")


def client_credentials() -> grpc.ChannelCredentials | None:
    """Credentials of a channel, from the files as they are now; None when TLS is off.

    Raises ``EnvironmentVariableError``.
    """
    if (folder := _folder()) is None:
        return None
    key, certificate, authority = _read(folder)
    return grpc.ssl_channel_credentials(authority, key, certificate)


def server_credentials() -> grpc.ServerCredentials | None:
    """Credentials of a server that refuses clients without a certificate; None when TLS is off.

    The files are read again for every new connection, because cert-manager replaces them before they expire. Raises
    ``EnvironmentVariableError``.
    """
    if (folder := _folder()) is None:
        return None
    known = _read(folder)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal known
        newest = _read(folder)
        if newest == known:
            return None
        known = newest
        return _configuration(newest)

    # gRPC documents None as "nothing has changed"; its type stubs forget it.
    return grpc.dynamic_ssl_server_credentials(_configuration(known), changed, require_client_authentication=True)  # type: ignore[arg-type]


def _configuration(files: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    key, certificate, authority = files
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)


def _folder() -> Path | None:
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


def _read(folder: Path) -> tuple[bytes, bytes, bytes]:
    """Key, certificate and CA."""
    try:
        key, certificate, authority = ((folder / name).read_bytes() for name in _FILES)
    except OSError as error:
        raise EnvironmentVariableError(f"{VARIABLE} must name a folder with {', '.join(_FILES)}: {error}") from error
    return key, certificate, authority
