"""Where the servers listen, and what opens them."""

from typing import Final

from msgspec import Struct

BUCKET: Final = "text2song"


class Addresses(Struct, frozen=True, kw_only=True):
    """`kafka` is host:port, `mongo` a mongodb:// URI with the replica set, `s3_endpoint` a URL."""

    kafka: str
    mongo: str
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    s3_region: str

    def environment(self) -> dict[str, str]:
        """The settings that make a role use these servers."""
        return {
            "TEXT2SONG_LOG": f"kafka://{self.kafka}",
            "TEXT2SONG_STORE": self.mongo,
            "TEXT2SONG_OBJECTS": f"s3://{BUCKET}",
            "TEXT2SONG_S3_ENDPOINT": self.s3_endpoint,
            "TEXT2SONG_S3_REGION": self.s3_region,
            "TEXT2SONG_S3_ACCESS_KEY": self.s3_access_key,
            "TEXT2SONG_S3_SECRET_KEY": self.s3_secret_key,
        }
