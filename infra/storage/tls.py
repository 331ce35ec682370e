"""What a failed TLS handshake means, whichever client met it: each wraps OpenSSL's error, and keeps its text."""

import re
import ssl
from typing import Final

from domain.errors import UnavailableError

MISMATCH: Final = re.compile("hostname mismatch|IP address mismatch|certificate is not valid for", re.IGNORECASE)
EXPIRED: Final = re.compile("certificate has expired|certificate is not yet valid", re.IGNORECASE)
UNTRUSTED: Final = re.compile("CERTIFICATE_VERIFY_FAILED|certificate verify failed", re.IGNORECASE)


def distrusted(error: object, setting: str) -> str | None:
    """Why the server's certificate is not taken, and the way out; None when it is not about that.

    `setting` is the one that names the authorities.
    """
    text = str(error)
    if MISMATCH.search(text):
        return "its certificate is not made out for this host. Write the host that the certificate names"
    if EXPIRED.search(text):
        return "its certificate is not valid today. Renew it, or correct this machine's clock"
    if UNTRUSTED.search(text):
        return f"its certificate is not signed by an authority of {setting}. Name the PEM file of its authority there"
    return None


def context(
    cafile: str | None, certificate: str | None = None, key: str | None = None, *, setting: str
) -> ssl.SSLContext:
    """Raises UnavailableError naming the file that cannot be read. `setting` is what the names of settings begin with.

    `certificate` with `key` is the client's own; the key may stand in the same file.
    """
    try:
        made = ssl.create_default_context(cafile=cafile)
    except OSError as error:
        raise UnavailableError(
            f"The certificates in {cafile} cannot be read: {error}. Name a PEM file of authorities in {setting}_CA."
        ) from None
    if certificate is not None:
        try:
            made.load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise UnavailableError(
                f"The certificate in {certificate} cannot be used: {error}. Name a PEM file in {setting}_CERTIFICATE "
                f"and its key, without a password, there or in {setting}_KEY."
            ) from None
    return made
