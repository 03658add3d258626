"""Codecs: answers to authenticated bytes and back. One file per codec; transports know none of them."""
