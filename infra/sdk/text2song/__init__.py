"""A studio from a program: `text2song.client`."""
