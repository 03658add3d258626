"""cachebus: an authenticated bus on which the DNS resolvers of one organisation share what they have learned."""

from cachebus.answer import Answer, Evidence, Refusal, RRset

__version__ = "0.1.0"

__all__ = ["Answer", "Evidence", "RRset", "Refusal", "__version__"]
