"""Names of audio files, made from prompts in any script so that every file system takes them."""

from typing import Final
from unicodedata import category, normalize

from domain.events.jobs import Format

MAX_CHARACTERS: Final = 40
# With the rest of the name, fewer than the 143 bytes that encrypted file systems leave of 255.
MAX_BYTES: Final = 90


def stem(prompt: str) -> str:
    """The prompt's letters and digits in lower case, as one form of Unicode, with - in between."""
    kept = "".join(sign if category(sign)[0] in "LMN" else "-" for sign in normalize("NFC", prompt.lower()))
    words = "-".join(filter(None, kept.split("-")))[:MAX_CHARACTERS]
    return words.encode()[:MAX_BYTES].decode(errors="ignore").strip("-") or "music"


def file_name(prompt: str, job_id: str, index: int, output_format: Format, *, digits: int = 6) -> str:
    """`index` counts the job's samples; the last `digits` of the job's id tell jobs with one prompt apart."""
    return f"{stem(prompt)}-{job_id[-digits:]}-{index}.{output_format}"
