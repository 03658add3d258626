"""How addresses and errors are named in logs. Decides nothing else."""

from __future__ import annotations

import os
import socket
import ssl

from cachebus_transports._address import Address


def shown(address: Address) -> str:
    """An address as it stands in the configuration."""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def why(error: Exception) -> str:
    """What went wrong, the same for each address that was tried: event loops put it into their texts."""
    match error:
        case ssl.SSLCertVerificationError():
            return str(error.verify_message)
        case ssl.SSLError() | socket.gaierror():
            return error.strerror or str(error)
        case TimeoutError(errno=None):
            return str(error) or "no answer in time"
        case OSError(errno=int(number)):
            return os.strerror(number)
    return str(error) or type(error).__name__
